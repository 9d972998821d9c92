"""Optimizers, gradient clipping, the learning rate's schedule."""
