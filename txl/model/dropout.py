"""Dropout whose masks are cheap to draw on a CPU: four elements share one random number."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_LEVELS = 2**16  # an element's mask is drawn from 16 random bits


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element of x to 0 with probability p (0 <= p < 1) and divide the others by the share that is kept.

    On a CPU, p is rounded to a multiple of 1 / MASK_LEVELS, four elements share one 64-bit number of torch's
    generator, and autograd keeps one byte per element. Torch's own dropout draws a number per element there, which
    took six per cent of a training step.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler cannot read the numbers below
        return F.dropout(x, p)
    keep = round((1 - p) * MASK_LEVELS)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= MASK_LEVELS // 2 - keep
    return x * mask * (MASK_LEVELS / keep)


class Dropout(nn.Module):
    """Applies `dropout` in training mode only."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        return dropout(x, self.p) if self.training else x
