"""torch's Muon, which orthogonalises all matrices of one shape together: on a GPU, and small ones on a CPU.

A model has a few shapes and many matrices of each. Torch's own step launches about forty kernels for every matrix, one
after the other; base has 112 matrices. Here the products of one shape are one batched product each, and everything that
is no product is one launch for all matrices of a shape: a pass that reads gradients and momentum, and a pass that
updates the weights.

Torch multiplies in bfloat16. A CPU without such an instruction takes up to 60 times as long for it as for float32, so
there the products are float32.

Shapes: n matrices of a rows and b columns.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from txl.optim.without_compiler import without_compiler

LARGEST_ON_CPU = 2**18  # elements; docs/speed-log.md has the measurement


class BatchedMuon(without_compiler(torch.optim.Muon)):  # type: ignore[misc]
    """torch's Muon with `adjust_lr_fn="match_rms_adamw"`. Its state is torch's, so either can load the other's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all parameters that have a gradient."""
        params = [p for group in self.param_groups for p in group["params"]]
        if product_dtype(params) is torch.bfloat16 and not steps_together(params):
            super().step()
            return
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            for alike in by_shape.values():
                step_of_one_shape(alike, [self.state[p]["momentum_buffer"] for p in alike], group)


def steps_together(params: list[Tensor]) -> bool:
    """Whether matrices of one shape are updated together. On a CPU, large ones are faster one by one."""
    return all(p.is_cuda or p.numel() <= LARGEST_ON_CPU for p in params)


def product_dtype(params: list[Tensor]) -> torch.dtype:
    """The type of the products: bfloat16, as torch's Muon has it, where the device has an instruction for it."""
    return torch.bfloat16 if all(p.is_cuda for p in params) or cpu_multiplies_bf16() else torch.float32


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has products of bfloat16, and oneDNN uses them."""
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_avx512_bf16_supported():
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def step_of_one_shape(params: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
    """One step of Muon for n matrices of one shape.

    Args:
        params: weights [a, b] that have gradients.
        momenta: their averaged gradients [a, b].
        group: torch's options: lr, weight_decay, momentum, nesterov, ns_coefficients, ns_steps, eps.
    """
    grads = [p.grad for p in params if p.grad is not None]
    torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
    updates = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
    directions = orthogonalise(torch.stack(tuple(updates)).to(product_dtype(params)), group)
    rate = 0.2 * max(params[0].shape) ** 0.5 * group["lr"]  # the size of AdamW's updates (Liu et al. 2025)
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, list(directions.to(params[0].dtype).unbind()), alpha=-rate)


def orthogonalise(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """U V^T of every matrix U S V^T, roughly, by Newton and Schulz's iteration (Jordan et al. 2024).

    Args:
        matrices: [n, a, b].
        group: torch's options: ns_coefficients, ns_steps, eps.

    Returns:
        [n, a, b] in the dtype of `matrices`.
    """
    a, b, c = group["ns_coefficients"]
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
