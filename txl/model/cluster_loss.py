"""The loss of one softmax with its gradient, in bounded memory: adaptive_softmax.py adds up the clusters.

Shapes: n tokens, v columns (words), d width of the vectors.
"""

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from txl.model.clusters import FurtherTargets
from txl.model.linear import linear, uses_onednn

ROWS_AT_ONCE = 2**14  # rows of a table's gradient that are computed apart and then added: 32 MiB at width 512
LOGITS_AT_ONCE = 2**25  # logits that `total_loss` holds, or those of one token if they are more: 128 MiB in float32

HALF = (torch.float16, torch.bfloat16)

WeightAndBias = tuple[Tensor, Tensor]  # [v, d] and [v]


class BlockGradient(NamedTuple):
    """Where the gradient of a block of columns is written to."""

    weight: Tensor  # [v, d], or [r, d] with `rows`
    bias: Tensor  # [v]
    rows: Tensor | None = None  # [r], the rows of the weight that get a gradient; None: all


def at_least_fp32(logits: Tensor) -> Tensor:
    """Logits of any shape in float32 or wider. In half precision a softmax over 20,000 words loses its tail."""
    return logits.to(wide(logits.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for a dtype of half precision; any other dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def loss_of_cluster(
    x: Tensor,
    target: Tensor,
    weights: list[WeightAndBias],
    grads: list[BlockGradient] | None,
    scale: float,
    further: FurtherTargets | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Loss of one softmax over the columns of all blocks, and its gradient times `scale`.

    Args:
        x: [n, d] in the dtype that products are computed in.
        target: [n] columns.
        weights: blocks of columns, each a weight [v, d] and a bias [v].
        grads: what is overwritten with the gradients of each block; None to compute no gradient.
        scale: factor on the gradients.
        further: second targets, which count in the gradients only.

    Returns:
        The sum of the losses in nats, in float64; and the gradient [n, d] of x in float32 or wider, or None.
    """
    weights = [(w.to(x.dtype), b) for w, b in weights]
    if _uses_half_logits(x):
        return _loss_over_half_logits(x, target, weights, grads, scale, further)
    dtype = wide(x.dtype)
    sizes = [len(w) for w, _ in weights]
    n, columns = len(x), sum(sizes)
    rows = max(1, min(n, LOGITS_AT_ONCE // columns))
    logits = torch.empty(rows, columns, dtype=dtype, device=x.device)
    nats = torch.zeros((), dtype=torch.float64, device=x.device)
    grad_x = torch.zeros(x.shape, dtype=dtype, device=x.device) if grads else None
    if grads and n == 0:
        for grad in grads:
            grad.weight.zero_()
            grad.bias.zero_()
    for begin in range(0, n, rows):
        part, word = x[begin : begin + rows], target[begin : begin + rows]
        for (w, b), out in zip(weights, logits[: len(part)].split(sizes, dim=1), strict=True):
            torch.add(linear(part, w), b, out=out)
        probability = logits[: len(part)].log_softmax(-1)
        row = torch.arange(len(part), device=x.device)
        nats -= probability[row, word].sum(dtype=torch.float64)
        if grads is None or grad_x is None:
            continue
        probability.exp_()
        if further is not None:
            add_further_targets(probability, further.rows(begin, begin + rows))
        probability[row, word] -= 1
        for (w, _), grad, p in zip(weights, grads, probability.split(sizes, dim=1), strict=True):
            _store_product(grad.bias, None, p, begin > 0, scale)
            p = p.to(x.dtype)
            of_rows = p if grad.rows is None else p[:, grad.rows]
            _store_product(grad.weight, part, of_rows, begin > 0, scale, any_shape=grad.rows is not None)
            grad_x[begin : begin + rows].add_(linear(p, w.t()), alpha=scale)
    return nats, grad_x


def add_further_targets(probability: Tensor, further: FurtherTargets) -> None:
    """Add to probabilities [n, v], in place, what the second targets contribute to the gradient of the logits."""
    weight = torch.where(further.column >= 0, further.weight, 0.0).to(probability.dtype)
    probability *= 1 + weight[:, None]
    row = torch.arange(len(probability), device=probability.device)
    probability[row, further.column.clamp(min=0)] -= weight


def _loss_over_half_logits(
    x: Tensor,
    target: Tensor,
    weights: list[WeightAndBias],
    grads: list[BlockGradient] | None,
    scale: float,
    further: FurtherTargets | None,
) -> tuple[Tensor, Tensor | None]:
    """`loss_of_cluster` with all blocks of columns as one."""
    from txl.model.half_softmax import loss_over_half_logits

    if len(weights) == 1 and (grads is None or grads[0].rows is None):
        into = (grads[0].weight, grads[0].bias) if grads else None
        return loss_over_half_logits(x, target, *weights[0], into, scale, further)
    weight, bias = (torch.cat(parts) for parts in zip(*weights, strict=True))
    together = (weight.new_empty(weight.shape, dtype=torch.float32), torch.empty_like(bias)) if grads else None
    result = loss_over_half_logits(x, target, weight, bias, together, scale, further)
    if grads and together:
        of_weights, of_biases = (whole.split([len(w) for w, _ in weights]) for whole in together)
        for grad, of_weight, of_bias in zip(grads, of_weights, of_biases, strict=True):
            grad.weight.copy_(of_weight if grad.rows is None else of_weight[grad.rows])
            grad.bias.copy_(of_bias)
    return result


def _uses_half_logits(x: Tensor) -> bool:
    """Whether the logits stay in half precision: on a GPU, where their memory traffic takes most of the time."""
    return x.is_cuda and x.dtype in HALF and importlib.util.find_spec("triton") is not None


def _store_product(
    grad: Tensor, x: Tensor | None, p: Tensor, accumulate: bool, scale: float, any_shape: bool = False
) -> None:
    """grad = scale * p^T x, or scale * the sums of p's columns without x.

    Args:
        grad: is overwritten.
        x: [n, d].
        p: [n, v].
        accumulate: add to grad.
        scale: factor.
        any_shape: v is another number each time. oneDNN would make a program for each.
    """
    if x is not None and x.dtype == grad.dtype and (any_shape or not uses_onednn(x)):
        grad.addmm_(p.t(), x, beta=float(accumulate), alpha=scale)
        return
    for begin in range(0, len(grad), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        part = p[:, rows].sum(0) if x is None else linear(p[:, rows].t(), x.t())
        if accumulate:
            grad[rows].add_(part, alpha=scale)
        elif part.dtype == grad.dtype:
            torch.mul(part, scale, out=grad[rows])
        else:
            grad[rows].copy_(part).mul_(scale)  # in the wider dtype
