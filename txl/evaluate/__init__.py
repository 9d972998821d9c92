"""Models with fixed weights: the loss over a split or a text, fast runtimes, generation."""
