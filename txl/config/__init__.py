"""What a run is: every option, its type, its rules; configurations composed, checked, hashed.

Nothing here imports torch.
"""
