"""Matrix products that use oneDNN on CPUs with AVX-512, and torch's own product everywhere else.

PyTorch multiplies float32 matrices with MKL, which uses no AVX-512 on CPUs that are not made by Intel. Half precision
goes to oneDNN, which uses AVX-512 on every CPU that has it. This module sends float32 to oneDNN too: 500 GFLOP/s
instead of 216 on a Zen 5 (docs/speed-log.md).

Shapes: k inputs, m outputs.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_TO_EXPECT = 64  # rows of x that a packed weight is made for; others can be multiplied as well


@functools.cache
def has_avx512() -> bool:
    """Whether this CPU has AVX-512 and this build of torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def uses_onednn(x: Tensor) -> bool:
    """Whether products of x are computed by oneDNN. torch.jit.trace and torch.compile do not know its function."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 and has_avx512()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k], weight [m, k], bias [m] -> x weight^T + bias [..., m]. Differentiable if the weight is not packed."""
    if weight.is_mkldnn:
        x = x.to(weight.dtype)  # as autocast would
        return _onednn_linear(x, weight, bias) if x.numel() else x.new_empty(*x.shape[:-1], len(weight))
    if not uses_onednn(x):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn_linear(x, weight, bias)
    product: Tensor = _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def pack(weight: Tensor) -> Tensor:
    """A copy of a weight [m, k] in the order in which oneDNN multiplies it. Only `linear` can read it.

    Otherwise each product makes such a copy and forgets it.
    """
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_TO_EXPECT)
    return packed


class Linear(nn.Linear):
    """torch's Linear, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., m]"""
        return linear(x, self.weight, self.bias)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x [..., k], weight [m, k] and bias [m], each None where it is not needed."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _onednn_linear(grad, weight.t()) if needs_x else None,
            _onednn_linear(rows.t(), x.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
