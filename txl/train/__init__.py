"""The training loop, its state, and the evaluation at its end."""
