"""Speed: training steps, inference, encoding."""
