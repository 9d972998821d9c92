"""Gradient clipping."""

import torch
from torch import Tensor

from txl.optim.groups import ScalesGradients, TrainingOptimizer


def clip_gradients(optimizer: TrainingOptimizer, params: list[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of `params` so that their joint norm is at most `max_norm`; 0 leaves them as they are.

    If the optimizer can multiply by the factor while it reads the gradients, the factor is handed to it instead.
    Sparse gradients must be coalesced (distributed.average_sparse_gradient).

    Returns the norm before, as a tensor on the device.
    """
    grads = [p.grad.values() if p.grad.is_sparse else p.grad for p in params if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        all_params = len(params) == sum(len(group["params"]) for group in optimizer.param_groups)
        if all_params and isinstance(optimizer, ScalesGradients):
            optimizer.gradient_factor = factor
        else:
            torch._foreach_mul_(grads, factor)
    return norm
