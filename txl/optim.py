"""LAMB, the other optimizers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from txl.choices import OptimizerName, SchedulerName
from txl.config import OptimizerConfig, SchedulerConfig

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


class DenseAndSparse:
    """Two optimizers as one: for gradients of whole tensors, and for those that hold some rows only."""

    def __init__(self, dense: torch.optim.Optimizer, sparse: torch.optim.Optimizer):
        self.dense, self.sparse = dense, sparse
        self.param_groups = [*dense.param_groups, *sparse.param_groups]

    def step(self) -> None:
        self.dense.step()
        self.sparse.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.dense.zero_grad(set_to_none)
        self.sparse.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"dense": self.dense.state_dict(), "sparse": self.sparse.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        self.param_groups = [*self.dense.param_groups, *self.sparse.param_groups]


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


def build_optimizer(
    config: OptimizerConfig, params: Iterable[Tensor], sparse: Sequence[Tensor] = ()
) -> torch.optim.Optimizer | DenseAndSparse:
    """`sparse`: those of `params` whose gradients hold some rows only (sampled.py). Other rows, and what the optimizer
    remembers of them, stay as they are; with SGD these tables have no momentum. rules.py refuses what cannot be so.
    """
    params, lr, decay = list(params), config.lr, config.weight_decay
    betas = tuple(config.betas)
    dense = [p for p in params if not any(p is table for table in sparse)]
    match config.name:
        case OptimizerName.lamb:
            return Lamb(params, lr, betas, config.eps, decay)
        case OptimizerName.adam:
            adam = torch.optim.Adam(dense, lr, betas, config.eps, decay, fused=True)
            if not sparse:
                return adam
            return DenseAndSparse(adam, torch.optim.SparseAdam(sparse, lr, betas, config.eps))
        case OptimizerName.sgd:
            groups = [{"params": dense}, {"params": sparse, "momentum": 0.0}] if sparse else dense
            return torch.optim.SGD(groups, lr, config.momentum, weight_decay=decay, fused=not sparse)
        case OptimizerName.adagrad:
            return torch.optim.Adagrad(params, lr, weight_decay=decay, eps=config.eps)


@dataclass
class Plateau:
    """What the `dev_perf` schedule remembers: the factor on the base rate, and how it got there."""

    factor: float = 1.0
    best: float = math.inf
    bad_validations: int = 0

    def update(self, valid_loss: float, config: SchedulerConfig) -> None:
        """After a validation: a loss that did not fall by 0.01 % for longer than `patience` lowers the rate.

        Other schedules remember nothing.
        """
        if config.name is not SchedulerName.dev_perf:
            return
        if valid_loss < self.best * (1 - 1e-4):
            self.best, self.bad_validations = valid_loss, 0
            return
        self.bad_validations += 1
        if self.bad_validations > config.patience:
            self.factor, self.bad_validations = self.factor * config.decay_rate, 0


def lr_at(step: int, config: SchedulerConfig, base_lr: float, max_step: int, plateau: Plateau) -> float:
    """Learning rate after `step` updates. `max_step`: the step at which the cosine ends."""
    warmup = config.warmup_step
    if config.name is SchedulerName.inv_sqrt:
        if step == 0 and warmup == 0:
            return base_lr
        return base_lr * (step**-0.5 if step > warmup else step / warmup**1.5)
    if step < warmup:
        return base_lr * step / warmup
    if config.name is SchedulerName.cosine:
        progress = min(1.0, (step - warmup) / max(1, max_step - warmup))
        return config.eta_min + (base_lr - config.eta_min) * (1 + math.cos(math.pi * progress)) / 2
    if config.name is SchedulerName.dev_perf:
        return max(config.lr_min, base_lr * plateau.factor)
    return base_lr


def lr_of_update(done: int, config: SchedulerConfig, base_lr: float, max_step: int, plateau: Plateau) -> float:
    """Rate of the update that follows `done` updates.

    The reference sets the rate *after* each update: update n + 1 uses lr_at(n), and the very first one the full
    base rate. Under LAMB that kick is what starts the zero-initialised biases, so the published recipes keep it
    (`scheduler.first_update_at_base_lr`). Without it, update n uses lr_at(n).
    """
    if not config.first_update_at_base_lr:
        done += 1
    elif done == 0:
        return base_lr
    return lr_at(done, config, base_lr, max_step, plateau)
