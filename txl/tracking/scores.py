"""The scores that are reported beside a loss."""

import math
from typing import Protocol


def score_from_loss(loss: float, metric: str) -> float:
    """Perplexity (metric `ppl`) or bits per character (`bpc`) of a loss in nats per token."""
    return loss / math.log(2) if metric == "bpc" else math.exp(min(loss, 700.0))


class HasLoss(Protocol):
    """What has a loss in nats per token."""

    @property
    def loss(self) -> float:
        """Nats per token."""


class LossScores:
    """The scores of what has a loss, as properties."""

    @property
    def ppl(self: HasLoss) -> float:
        """Perplexity."""
        return score_from_loss(self.loss, "ppl")

    @property
    def bpc(self: HasLoss) -> float:
        """Bits per token; per character if tokens are characters."""
        return score_from_loss(self.loss, "bpc")
