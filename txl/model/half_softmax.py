"""The loss of one softmax over half-precision logits, with its gradient, for GPUs.

The logits stay in half precision, in a buffer whose rows begin at multiples of 128 bytes: a GPU reads rows of 19,997
numbers two bytes at a time. One kernel turns them into their own gradient, in place. So a logit costs 14 bytes of
memory traffic: 2 are written by the product, 2 + 2 are read and 2 written by the kernel, and the two products of the
gradients and the sum over each column read 2 each. All sums are float32.

Shapes: n tokens, v columns (words), d width of the vectors.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from txl.model.clusters import FurtherTargets

ALIGNED = 64  # columns of the buffer are a multiple of this
HALF_LOGITS_AT_ONCE = 2**29  # 1 GB in half precision
BLOCK = 4096  # columns that the kernel reads at a time
FP16_FACTOR = 1024.0  # in fp16, probabilities below 6e-8 would become 0; this factor is taken out of the products


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_of_row(  # type: ignore[no-untyped-def]
    logits, bias, target, second, nats, stride, columns, factor, weight,
    GRADIENT: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: nats = log sum exp - logit of the target. The logits become factor * (probability - 1 at the target).

    SECOND: and weight * (probability - 1 at the second target) is added to that, where there is one (not -1).
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    word = tl.load(target + row).to(tl.int32)
    best = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < stride
        x = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(bias + column, mask=inside, other=0.0)
        x = tl.where(column < columns, x, -1e30)  # beyond them lies anything
        higher = tl.maximum(best, x)
        total = total * tl.exp(best - higher) + tl.exp(x - higher)
        best = higher
    most = tl.max(best, 0)
    log_sum = most + tl.log(tl.sum(total * tl.exp(best - most), 0))
    own = tl.load(logits + word).to(tl.float32) + tl.load(bias + word)
    tl.store(nats + row, log_sum - own)
    if GRADIENT:
        tl.debug_barrier()  # all threads have read the target's logit before one overwrites it
        if SECOND:
            other = tl.load(second + row).to(tl.int32)
            share = tl.where(other >= 0, weight, 0.0)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < stride
            x = tl.load(logits + column, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(bias + column, mask=inside, other=0.0)
            p = tl.exp(tl.where(column < columns, x, -1e30) - log_sum)
            if SECOND:
                p += share * (p - tl.where(column == other, 1.0, 0.0))
            p -= tl.where(column == word, 1.0, 0.0)
            tl.store(logits + column, (p * factor).to(logits.dtype.element_ty), mask=inside)


def loss_over_half_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    grads: tuple[Tensor, Tensor] | None,
    scale: float,
    further: FurtherTargets | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Loss of one softmax, and its gradient times `scale`.

    Args:
        x: [n, d] in half precision.
        target: [n] columns.
        weight: [v, d] in the same precision.
        bias: [v] in float32.
        grads: float32 tensors of the weight's and the bias' shape, which are overwritten; None to compute no gradient.
        scale: factor on the gradients.
        further: second targets, which count in the gradients only.

    Returns:
        The sum of the losses in nats, in float64; and the gradient [n, d] of x in float32, or None.
    """
    n, columns = len(x), len(weight)
    width = -(-columns // ALIGNED) * ALIGNED
    rows = max(1, min(n, HALF_LOGITS_AT_ONCE // width))
    buffer = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    losses = torch.empty(n, dtype=torch.float32, device=x.device)
    grad_x = torch.empty(x.shape, dtype=torch.float32, device=x.device) if grads else None
    factor = FP16_FACTOR if x.dtype == torch.float16 else 1.0
    if grads and n == 0:
        for grad in grads:
            grad.zero_()
    bias = F.pad(bias.float(), (0, width - columns))  # so that its last loads, too, are whole
    second, second_weight = further or (target, 0.0)  # without second targets the kernel reads neither
    for begin in range(0, n, rows):
        part = x[begin : begin + rows]
        logits = buffer[: len(part), :columns]
        torch.mm(part, weight.t(), out=logits)
        _gradient_of_row[(len(part),)](
            logits, bias, target[begin:], second[begin:], losses[begin:], width, columns, factor, second_weight,
            GRADIENT=grads is not None, SECOND=further is not None, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
        if grads is None or grad_x is None:
            continue
        grad_weight, grad_bias = grads
        _add_product(grad_weight, logits.t(), part, begin > 0, scale / factor)
        torch.mul(_wide_product(logits, weight), scale / factor, out=grad_x[begin : begin + rows])
        by_column = logits.sum(0, dtype=torch.float32) * (scale / factor)
        if begin > 0:
            grad_bias.add_(by_column)
        else:
            grad_bias.copy_(by_column)
    return losses.sum(dtype=torch.float64), grad_x


def _add_product(out: Tensor, a: Tensor, b: Tensor, accumulate: bool, scale: float) -> None:
    """out = scale * a b, in float32 straight from the sums of the product; added to out if `accumulate`."""
    if a.is_cuda:
        beta = float(accumulate)
        torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, beta=beta, alpha=scale, out=out)
    else:
        out.addmm_(a.float(), b.float(), beta=float(accumulate), alpha=scale)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32."""
    product: Tensor = torch.ops.aten.mm.dtype(a, b, torch.float32) if a.is_cuda else a.float() @ b.float()
    return product
