"""Models with fixed weights: losses over a split, fast runtimes, generation."""
