"""Dropout that costs a CPU little: masks from a quarter of a random number each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ODDS = 2**16  # a chance in so many: an element's random bits


def dropout(x: Tensor, p: float) -> Tensor:
    """x with elements set to 0 with probability p (0 <= p < 1), and the others divided by the share that stays.

    On a CPU p is rounded to ODDS-ths, four elements share one 64-bit number of torch's generator, and the mask that
    autograd keeps has a byte per element: drawing each by itself was six per cent of a training step.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    stay = round((1 - p) * ODDS)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= ODDS // 2 - stay
    return x * mask * (ODDS / stay)


class Dropout(nn.Module):
    """`dropout` in training."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
