"""Gradient clipping."""

import torch
from torch import Tensor

from txl.optim.lamb import Lamb


def clip(optimizer: torch.optim.Optimizer, params: list[Tensor], largest: float) -> Tensor:
    """Scale the gradients of `params` to a joint norm of at most `largest` (0: leave them) -> the norm before.

    Reads them once; where the optimizer can, it scales them while it reads them itself. Sparse gradients are
    coalesced (distributed.average_rows).
    """
    grads = [p.grad.values() if p.grad.is_sparse else p.grad for p in params if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if largest > 0:
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        if isinstance(optimizer, Lamb) and len(params) == sum(len(group["params"]) for group in optimizer.param_groups):
            optimizer.gradient_factor = factor
        else:
            torch._foreach_mul_(grads, factor)
    return norm
