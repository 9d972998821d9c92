"""Positional schemes: how a model knows where a token stands. One module for each choice of `model.positions`;
scheme.py has the interface."""
