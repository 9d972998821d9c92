"""LAMB: layer-wise adaptive moments (You et al. 2020)."""

import torch
from torch import Tensor

LAMB_LARGEST_NORM = 10.0  # ||p|| counts at most this much in the trust ratio


BLOCK = 2**20  # numbers that a CPU updates at once: five blocks of 4 MiB fit its last cache


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al. 2020), in the reference's variant.

    No bias correction; weight decay joins the update before its norm is taken;
    ratio = min(||p||, 10) / (||update|| + eps), and 1 where either norm is 0.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay))
        self.gradient_factor: Tensor | None = None  # what the next step multiplies all gradients by
        self._step_supports_amp_scaling = True  # GradScaler hands over its verdict instead of waiting for it

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update. Gradients are used up: their memory holds other numbers afterwards."""
        skip = getattr(self, "found_inf", None)  # torch's GradScaler, of fp16: 1 where this update must not happen
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            if params and all(p.device.type == "cpu" and p.is_contiguous() for p in params):
                self._step_in_blocks(params, group, skip)
            elif params:
                self._step_together(params, group, skip)
        self.gradient_factor = None

    def _step_together(self, params: list[Tensor], group: dict, skip: Tensor | None) -> None:
        """All tensors in one call per operation and without waiting for the device, which is what a GPU wants."""
        grads = [p.grad for p in params]
        updates = [torch.empty_like(p) for p in params]
        torch._foreach_zero_(updates)
        divisor = self._divisor(grads)
        moments = [self.state[p]["exp_avg"] for p in params], [self.state[p]["exp_avg_sq"] for p in params]
        direction(updates, grads, *moments, group, divisor, skip)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        weight_norm = torch.stack(torch._foreach_norm(params))
        rate = -group["lr"] * trust_ratio(weight_norm, torch.stack(torch._foreach_norm(updates)), group["eps"])
        if skip is not None:
            rate = rate * (1 - skip)
        torch._foreach_mul_(updates, list(rate.unbind()))
        torch._foreach_add_(params, updates)

    def _step_in_blocks(self, params: list[Tensor], group: dict, skip: Tensor | None) -> None:
        """Block by block, so that a CPU's cache holds what the operations on a block share.

        The direction takes the gradient's place until the norms, and so the ratio, of the whole tensor are known.
        """
        if skip is not None and skip.item():
            return
        scratch = torch.empty(min(BLOCK, max(p.numel() for p in params)), dtype=params[0].dtype)
        divisor = self._divisor([p.grad for p in params])
        for p in params:
            state, norms = self.state[p], torch.zeros(2, dtype=torch.float64)
            tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
            for weight, grad, mean, square in zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True):
                update = scratch[: len(weight)].zero_()
                direction([update], [grad], [mean], [square], group, divisor, None)
                if group["weight_decay"]:
                    update.add_(weight, alpha=group["weight_decay"])
                norms += torch.stack([weight.dot(weight), update.dot(update)])
                grad.copy_(update)
            p.add_(p.grad, alpha=-group["lr"] * trust_ratio(*norms.sqrt(), group["eps"]).item())

    def _divisor(self, grads: list[Tensor]) -> Tensor | None:
        """What `direction` divides the gradients by; its kernels take a float32, so others are scaled here."""
        if self.gradient_factor is None:
            return None
        if self.gradient_factor.dtype is torch.float32:
            return self.gradient_factor.reciprocal()
        torch._foreach_mul_(grads, self.gradient_factor)
        return None


def direction(updates, grads, means, squares, group: dict, divisor: Tensor | None, skip: Tensor | None) -> None:
    """Update the moments and add to `updates`, which are zero, LAMB's direction: mean / (sqrt(square) + eps).

    That is what torch's fused Adam does to a weight of zero without bias correction (step infinity) at a rate of -1:
    one pass over all of it.
    """
    beta1, beta2 = group["betas"]
    end_of_time = torch.full((), 1e9, device=updates[0].device)
    torch._fused_adam_(
        updates, grads, means, squares, [], [end_of_time] * len(updates), lr=-1.0, beta1=beta1, beta2=beta2,
        weight_decay=0.0, eps=group["eps"], amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip,
    )  # fmt: skip


def trust_ratio(weight_norm: Tensor, update_norm: Tensor, eps: float) -> Tensor:
    either_zero = (weight_norm == 0) | (update_norm == 0)
    return torch.where(either_zero, 1.0, weight_norm.clamp(max=LAMB_LARGEST_NORM) / (update_norm + eps))
