"""LAMB: layer-wise adaptive moments (You et al. 2020)."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from txl.config.optimizer import OptimizerConfig
from txl.optim.groups import ParameterGroup, TrainingOptimizer, torch_groups
from txl.optim.without_compiler import without_compiler

MAX_WEIGHT_NORM = 10.0  # ||p|| is clamped to this in the trust ratio
BLOCK = 2**20  # elements that a CPU updates at a time: five blocks of 4 MiB fit into its last-level cache


def build_lamb(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> TrainingOptimizer:
    """LAMB."""
    assert config.eps is not None  # rules.py requires it
    return without_compiler(Lamb)(torch_groups(groups), config.lr, config.betas, config.eps, config.weight_decay)


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al. 2020), in the reference's variant.

    There is no bias correction. Weight decay is added to the update before its norm is taken. The trust ratio is
    min(||p||, 10) / (||update|| + eps), or 1 if either norm is 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        """As torch's optimizers.

        Args:
            params: parameters to update, or groups of them.
            lr: learning rate.
            betas: decay rates of the first and second moment.
            eps: added to the denominators.
            weight_decay: share of the weight that is added to the update.
        """
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay))
        self.gradient_factor: Tensor | None = None  # see groups.ScalesGradients
        self._step_supports_amp_scaling = True  # GradScaler then sets found_inf instead of waiting for the device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. The gradients may be overwritten."""
        skip = getattr(self, "found_inf", None)  # set by torch's GradScaler under fp16: 1 if gradients overflowed
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            if params and updates_in_blocks(params):
                self._step_in_blocks(params, group, skip)
            elif params and _kernels_apply(params):
                self._step_by_kernels(params, group, skip)
            elif params:
                self._step_together(params, group, skip)
        self.gradient_factor = None

    def _step_together(self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """One call per operation for all tensors, and no waiting for the device: fast on a GPU."""
        grads = [_gradient(p) for p in params]
        updates = [torch.empty_like(p) for p in params]
        torch._foreach_zero_(updates)
        divisor = self._divisor(grads)
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        _add_direction(updates, grads, means, squares, group, divisor, skip)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        weight_norm = torch.stack(torch._foreach_norm(params))
        rate = -group["lr"] * trust_ratio(weight_norm, torch.stack(torch._foreach_norm(updates)), group["eps"])
        if skip is not None:
            rate = rate * (1 - skip)
        torch._foreach_mul_(updates, list(rate.unbind()))
        torch._foreach_add_(params, updates)

    def _step_by_kernels(self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Read and write every number once in each of two passes over all tensors."""
        from txl.optim.lamb_kernels import step_in_three_launches

        moments = [[self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq")]
        tensors = [params, [_gradient(p).contiguous() for p in params], *moments]
        step_in_three_launches(tensors, group, MAX_WEIGHT_NORM, self.gradient_factor, skip)

    def _step_in_blocks(self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Block by block, so that all operations on a block find it in a CPU's cache.

        The direction overwrites the gradient until the norms of the whole tensor, and so the ratio, are known.
        """
        if skip is not None and skip.item():
            return
        scratch = torch.empty(min(BLOCK, max(p.numel() for p in params)), dtype=params[0].dtype)
        divisor = self._divisor([_gradient(p) for p in params])
        for p in params:
            gradient, state, norms = _gradient(p), self.state[p], torch.zeros(2, dtype=torch.float64)
            tensors = (p, gradient, state["exp_avg"], state["exp_avg_sq"])
            for weight, grad, mean, square in zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True):
                update = scratch[: len(weight)].zero_()
                _add_direction([update], [grad], [mean], [square], group, divisor, None)
                if group["weight_decay"]:
                    update.add_(weight, alpha=group["weight_decay"])
                norms += torch.stack([weight.dot(weight), update.dot(update)])
                grad.copy_(update)
            weight_norm, update_norm = norms.sqrt().unbind()
            ratio = trust_ratio(weight_norm, update_norm, group["eps"])
            p.add_(gradient, alpha=-group["lr"] * ratio.item())

    def _divisor(self, grads: list[Tensor]) -> Tensor | None:
        """What `_add_direction` must divide the gradients by. Its kernel takes float32 only; others are scaled here."""
        if self.gradient_factor is None:
            return None
        if self.gradient_factor.dtype is torch.float32:
            return self.gradient_factor.reciprocal()
        torch._foreach_mul_(grads, self.gradient_factor)
        return None


def updates_in_blocks(params: Sequence[Tensor]) -> bool:
    """Whether `Lamb` updates these parameters block by block."""
    return all(p.device.type == "cpu" and p.is_contiguous() for p in params)


def _kernels_apply(params: Sequence[Tensor]) -> bool:
    """Whether `lamb_kernels` can update these parameters."""
    fit = all(p.is_cuda and p.dtype == torch.float32 and p.is_contiguous() for p in params)
    return fit and importlib.util.find_spec("triton") is not None


def trust_ratio(weight_norm: Tensor, update_norm: Tensor, eps: float) -> Tensor:
    """min(||p||, 10) / (||update|| + eps), or 1 if either norm is 0."""
    either_zero = (weight_norm == 0) | (update_norm == 0)
    return torch.where(either_zero, 1.0, weight_norm.clamp(max=MAX_WEIGHT_NORM) / (update_norm + eps))


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _add_direction(
    updates: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    group: dict[str, Any],
    divisor: Tensor | None,
    skip: Tensor | None,
) -> None:
    """Update the moments, and add LAMB's direction mean / (sqrt(square) + eps) to `updates`, which hold zeros.

    Torch's fused Adam does this in one pass: applied to a weight of zero, without bias correction (at step infinity),
    with a rate of -1.
    """
    beta1, beta2 = group["betas"]
    infinity = torch.full((), 1e9, device=updates[0].device)
    torch._fused_adam_(
        updates, grads, means, squares, [], [infinity] * len(updates), lr=-1.0, beta1=beta1, beta2=beta2,
        weight_decay=0.0, eps=group["eps"], amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip,
    )  # fmt: skip
