"""Matrix products on CPUs by the library that uses what the CPU has.

PyTorch multiplies float32 matrices by MKL, which keeps to AVX2 on CPUs that are not Intel's; half precision goes to
oneDNN, which takes AVX-512 wherever it is. So float32 goes there too: on a Zen 5, 500 GFLOP/s instead of 216
(docs/speed-log.md). Everywhere else this is torch's own product.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@functools.cache
def has_avx512() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def by_onednn(x: Tensor) -> bool:
    """Whether products of x are computed there. Tracing, and torch's compiler, do not know the function."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 and has_avx512()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k], weight [m, k], bias [m] -> x weight^T + bias [..., m]; differentiable."""
    if not by_onednn(x):
        return F.linear(x, weight, bias)
    return _OneDnnLinear.apply(x, weight, bias) if torch.is_grad_enabled() else _onednn(x, weight, bias)


class Linear(nn.Linear):
    """`linear` with its own weights."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _onednn(grad, weight.t()) if wants_x else None,
            _onednn(rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
