"""Transformer-XL: train, evaluate and compare language models with a memory."""
