"""The scores that are reported beside a loss."""

import math


def score_from_loss(loss: float, metric: str) -> float:
    """Perplexity (metric `ppl`) or bits per character (`bpc`) of a loss in nats per token."""
    return loss / math.log(2) if metric == "bpc" else math.exp(min(loss, 700.0))
