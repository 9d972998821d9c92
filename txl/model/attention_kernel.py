"""Transformer-XL's attention in three Triton kernels that hold the scores of one tile at a time.

Query i sees key j at distance d = i + K - T - j, if d is from 0 to `window`. Its score is
q_i k_j * scale + by_distance[i, max(0, R - 1 - d)]. So the relative shift (Dai et al. 2019, appendix B) costs nothing:
it is only another address to read from.

Softmax and gradients are computed tile by tile, as in FlashAttention (Dao et al. 2022, Dao 2023). The forward pass
keeps the logarithm of every row's sum, and the backward pass computes the probabilities again. No two programs write
to the same address and none adds to what is in memory, so the same input gives the same bits. Dropout uses a counter-
based generator (Philox). Its key is a number from torch's generator and its counter is the position (i, j). So no mask
is stored, and a resumed run draws the same one.

Shapes: B batch, N heads, T queries, K keys, H head width, R distances; BT and BK queries and keys of a tile, BH its
width. The one-letter arguments of the kernels (qb, qn, qt, ...) are strides: of the first letter's tensor, over batch,
head and row.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERIES, BLOCK_KEYS = 64, 64
MASKED_SCORE = tl.constexpr(-1e30)  # finite: with minus infinity, a row without any key would become not-a-number
LOG2_E = tl.constexpr(math.log2(math.e))  # the kernels compute exponentials in base 2, as GPUs do


@triton.jit
def _load_rows(base, row, column, stride, n_rows, n_columns):  # type: ignore[no-untyped-def]
    """base[row, column] of a matrix whose columns are contiguous; 0 outside of it."""
    inside = (row[:, None] < n_rows) & (column[None, :] < n_columns)
    return tl.load(base + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _scores(q, k, by_distance, i, j, stride, T, K, R, window, scale, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of a tile in base 2, which of them count, and the distances."""
    distance = i[:, None] + (K - T) - j[None, :]
    seen = (i[:, None] < T) & (j[None, :] < K) & (distance >= 0) & (distance <= window)
    place = by_distance + i[:, None].to(tl.int64) * stride + tl.maximum(R - 1 - distance, 0)
    shifted = tl.load(place, mask=seen, other=0.0).to(tl.float32)
    score = (tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + shifted) * LOG2_E
    return tl.where(seen, score, MASKED_SCORE), seen, distance


@triton.jit
def _dropout_factor(seed, i, j, K, dropatt):  # type: ignore[no-untyped-def]
    """1 / (1 - dropatt) for a probability that is kept, 0 for one that is dropped."""
    drawn = tl.rand(seed, i[:, None] * K + j[None, :])
    return tl.where(drawn >= dropatt, 1.0 / (1.0 - dropatt), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, out, log_sum,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, ob, on, ot,
    N, T, K, H, R, window, scale, dropatt,
    DROPS: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head against all keys it sees."""
    first = tl.program_id(0) * BT
    head = tl.program_id(1).to(tl.int64)
    b, n = head // N, head % N
    i, h = first + tl.arange(0, BT), tl.arange(0, BH)
    key, value, by_distance = key + b * kb + n * kn, value + b * vb + n * vn, by_distance + b * db + n * dn
    q = _load_rows(query + b * qb + n * qn, i, h, qt, T, H)
    best = tl.full([BT], MASKED_SCORE, tl.float32)
    total = tl.zeros([BT], tl.float32)
    result = tl.zeros([BT, BH], tl.float32)
    begin = tl.maximum(0, first + K - T - window) // BK * BK
    for start in range(begin, tl.minimum(K, first + BT + K - T), BK):
        j = start + tl.arange(0, BK)
        k = _load_rows(key, j, h, kt, K, H)
        score, seen, _ = _scores(q, k, by_distance, i, j, dt, T, K, R, window, scale, PRECISION)
        higher = tl.maximum(best, tl.max(score, 1))
        shrink = tl.exp2(best - higher)
        weight = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(weight, 1)
        best = higher
        if DROPS:
            weight = weight * _dropout_factor(tl.load(seed) + head, i, j, K, dropatt)
        v = _load_rows(value, j, h, vt, K, H)
        result = result * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
    inside = (i[:, None] < T) & (h[None, :] < H)
    total = tl.where(i < T, total, 1.0)
    result = result / total[:, None]
    place = out + b * ob + n * on + i[:, None].to(tl.int64) * ot + h[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    tl.store(log_sum + head * T + i, best + tl.log2(total), mask=i < T)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_queries(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, out, log_sum, grad_out, row_sum, grad_query, grad_by_distance,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, ob, on, ot, gb, gn, gt,
    N, T, K, H, R, window, scale, dropatt,
    DROPS: tl.constexpr, SHIFTS: tl.constexpr,
    PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of queries and of the rows of by_distance; stores sum(grad_out * out) of every row."""
    first = tl.program_id(0) * BT
    head = tl.program_id(1).to(tl.int64)
    b, n = head // N, head % N
    i, h = first + tl.arange(0, BT), tl.arange(0, BH)
    key, value, by_distance = key + b * kb + n * kn, value + b * vb + n * vn, by_distance + b * db + n * dn
    q = _load_rows(query + b * qb + n * qn, i, h, qt, T, H)
    g = _load_rows(grad_out + b * gb + n * gn, i, h, gt, T, H)
    o = _load_rows(out + b * ob + n * on, i, h, ot, T, H)
    sums = tl.load(log_sum + head * T + i, mask=i < T, other=0.0)
    mean = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(row_sum + head * T + i, mean, mask=i < T)
    grad_q = tl.zeros([BT, BH], tl.float32)
    farthest = tl.zeros([BT], tl.float32)  # gradient of the first column, which all clamped distances share
    rows = grad_by_distance + b * db + n * dn + i.to(tl.int64) * dt  # it has the strides of by_distance
    begin = tl.maximum(0, first + K - T - window) // BK * BK
    for start in range(begin, tl.minimum(K, first + BT + K - T), BK):
        j = start + tl.arange(0, BK)
        k = _load_rows(key, j, h, kt, K, H)
        v = _load_rows(value, j, h, vt, K, H)
        score, seen, distance = _scores(q, k, by_distance, i, j, dt, T, K, R, window, scale, PRECISION)
        weight = tl.where(seen, tl.exp2(score - sums[:, None]), 0.0)
        grad_weight = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROPS:
            grad_weight = grad_weight * _dropout_factor(tl.load(seed) + head, i, j, K, dropatt)
        grad_score = weight * (grad_weight - mean[:, None])
        grad_q += tl.dot(grad_score.to(k.dtype), k, input_precision=PRECISION)
        if SHIFTS:
            alone = seen & (distance < R - 1)
            place = rows[:, None] + (R - 1 - distance)
            tl.store(place, grad_score.to(grad_by_distance.dtype.element_ty), mask=alone)
            farthest += tl.sum(tl.where(alone, 0.0, grad_score), 1)
    place = grad_query + (head * T + i[:, None]) * H + h[None, :]
    inside = (i[:, None] < T) & (h[None, :] < H)
    tl.store(place, (grad_q * scale).to(grad_query.dtype.element_ty), mask=inside)
    if SHIFTS:
        tl.store(rows, farthest.to(grad_by_distance.dtype.element_ty), mask=i < T)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_keys(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, log_sum, grad_out, row_sum, grad_key, grad_value,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, gb, gn, gt,
    N, T, K, H, R, window, scale, dropatt,
    DROPS: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, from all queries that see it."""
    first = tl.program_id(0) * BK
    head = tl.program_id(1).to(tl.int64)
    b, n = head // N, head % N
    j, h = first + tl.arange(0, BK), tl.arange(0, BH)
    query, grad_out, by_distance = query + b * qb + n * qn, grad_out + b * gb + n * gn, by_distance + b * db + n * dn
    k = _load_rows(key + b * kb + n * kn, j, h, kt, K, H)
    v = _load_rows(value + b * vb + n * vn, j, h, vt, K, H)
    grad_k = tl.zeros([BK, BH], tl.float32)
    grad_v = tl.zeros([BK, BH], tl.float32)
    begin = tl.maximum(0, first - (K - T)) // BT * BT
    for start in range(begin, tl.minimum(T, first + BK - (K - T) + window), BT):
        i = start + tl.arange(0, BT)
        q = _load_rows(query, i, h, qt, T, H)
        g = _load_rows(grad_out, i, h, gt, T, H)
        sums = tl.load(log_sum + head * T + i, mask=i < T, other=0.0)
        mean = tl.load(row_sum + head * T + i, mask=i < T, other=0.0)
        score, seen, _ = _scores(q, k, by_distance, i, j, dt, T, K, R, window, scale, PRECISION)
        weight = tl.where(seen, tl.exp2(score - sums[:, None]), 0.0)
        grad_weight = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        kept = weight
        if DROPS:
            drop = _dropout_factor(tl.load(seed) + head, i, j, K, dropatt)
            grad_weight, kept = grad_weight * drop, weight * drop
        grad_v += tl.dot(tl.trans(kept.to(g.dtype)), g, input_precision=PRECISION)
        grad_score = weight * (grad_weight - mean[:, None])
        grad_k += tl.dot(tl.trans(grad_score.to(q.dtype)), q, input_precision=PRECISION)
    inside = (j[:, None] < K) & (h[None, :] < H)
    place = (head * K + j[:, None]) * H + h[None, :]
    tl.store(grad_key + place, (grad_k * scale).to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + place, grad_v.to(grad_value.dtype.element_ty), mask=inside)


class _RelativeAttention(torch.autograd.Function):
    """Launches the kernels, a program for every block of rows and every head; see `relative_attention` for shapes."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        by_distance: Tensor,
        seed: Tensor | None,
        window: int,
        dropatt: float,
    ) -> Tensor:
        """The result [B, N, T, H]. The backward pass gets it again, with the logarithm of each row's sum [B, N, T]."""
        (B, N, T, H), K, R = query.shape, key.shape[2], by_distance.shape[-1]
        out = query.new_empty(B, T, N, H).transpose(1, 2)  # contiguous for the output projection, which reads it next
        log_sum = query.new_empty(B, N, T, dtype=torch.float32)
        ctx.sizes = (N, T, K, H, R, window, H**-0.5, dropatt)
        ctx.constants = dict(
            DROPS=dropatt > 0,
            PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            BT=BLOCK_QUERIES,
            BK=BLOCK_KEYS,
            BH=max(16, triton.next_power_of_2(H)),
        )
        _forward[triton.cdiv(T, BLOCK_QUERIES), B * N](
            query, key, value, by_distance, seed, out, log_sum,
            *_strides(query, key, value, by_distance, out), *ctx.sizes, **ctx.constants,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, by_distance, seed, out, log_sum)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, value and by_distance: one kernel by queries, then one by keys."""
        query, key, value, by_distance, seed, out, log_sum = ctx.saved_tensors
        (B, N, T, _), K = query.shape, key.shape[2]
        grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
        row_sum = torch.empty_like(log_sum)
        grad_query, grad_key, grad_value = (
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
        )
        shifts = ctx.needs_input_grad[3]
        # Zeros, because nothing is stored for a query that has no key at some distance.
        grad_by_distance = torch.zeros_like(by_distance) if shifts else None
        assert grad_by_distance is None or grad_by_distance.stride() == by_distance.stride()
        _backward_queries[triton.cdiv(T, BLOCK_QUERIES), B * N](
            query, key, value, by_distance, seed, out, log_sum, grad_out, row_sum, grad_query,
            grad_by_distance if shifts else grad_query,
            *_strides(query, key, value, by_distance, out, grad_out), *ctx.sizes, SHIFTS=shifts, **ctx.constants,
        )  # fmt: skip
        _backward_keys[triton.cdiv(K, BLOCK_KEYS), B * N](
            query, key, value, by_distance, seed, log_sum, grad_out, row_sum, grad_key, grad_value,
            *_strides(query, key, value, by_distance, grad_out), *ctx.sizes, **ctx.constants,
        )  # fmt: skip
        return grad_query, grad_key, grad_value, grad_by_distance, None, None, None


def _strides(*tensors: Tensor) -> list[int]:
    """Strides over batch, head and row of each tensor. That of the last dimension must be 1."""
    assert all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in tensors)
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def relative_attention(
    query: Tensor, key: Tensor, value: Tensor, by_distance: Tensor, window: int | None, dropatt: float
) -> Tensor:
    """softmax(query key^T / sqrt(H) + by_distance, shifted), dropout, times value; see attention.py.

    float32, bfloat16 or float16; sums are float32.

    Args:
        query: [B, N, T, H].
        key: [B, N, K, H].
        value: [B, N, K, H].
        by_distance: [B, N, T, R], or a shape that broadcasts to it; columns by descending distance.
        window: largest distance that a query sees; None for all.
        dropatt: dropout of the probabilities.

    Returns:
        [B, N, T, H] in the dtype of key and value.
    """
    (B, N, T, _), K = query.shape, key.shape[2]
    by_distance = by_distance.to(key.dtype).expand(B, N, T, -1)
    # Drawn on the device, where the kernels read it, so that the host need not wait.
    seed = torch.randint(2**62, (1,), device=query.device) if dropatt > 0 else None
    window = K if window is None else window
    query = query.to(key.dtype)
    out: Tensor
    out = _RelativeAttention.apply(query, key, value, by_distance, seed, window, dropatt)  # type: ignore[no-untyped-call]
    return out
