"""Transformer-XL: train, evaluate and compare language models with a memory."""

__version__ = "0.2.0.dev0"  # the one place: setup.cfg reads it from here
