"""Transformer-XL: layers, attention, positions, the adaptive softmax."""
