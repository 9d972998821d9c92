"""Checkpoints on disk, and models of other implementations."""
