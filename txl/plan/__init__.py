"""What follows from a configuration before anything runs: batch per process, parameters, memory.

Nothing here imports torch.
"""
