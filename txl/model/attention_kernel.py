"""Transformer-XL's attention in three Triton kernels that hold the scores of one tile at a time.

Query i sees key j at distance d = i + K - T - j, if d is from 0 to `window`. Its score is
q_i k_j * scale + by_distance[i, max(0, R - 1 - d)]. So the relative shift (Dai et al. 2019, appendix B) costs nothing:
it is only another address to read from.

Softmax and gradients are computed tile by tile, as in FlashAttention (Dao et al. 2022, Dao 2023). The forward pass
keeps the logarithm of every row's sum, and the backward pass computes the probabilities again. No two programs write
to the same address and none adds to what is in memory, so the same input gives the same bits.

Most tiles are seen as a whole. Only tiles at the edges of what is seen (EDGE) need masks, so each kernel walks over its
tiles in three parts: edge, whole, edge. Unless distances are clamped (CLAMPS), a row of by_distance is contiguous in j.

In inference, keys and values lie in a ring buffer (txl/evaluate/kv_cache.py). With RING, key j is in row j - turn, or
j - turn + K: the forward pass reads them where they lie.

Dropout hashes the position (i, j) with a key of the head, which is made of one number of torch's generator. So no mask
is stored, and a resumed run draws the same one. (Triton's own generator, Philox, took 60 % of a kernel's instructions.)

Shapes: B batch, N heads, T queries, K keys, H head width, R distances; BT and BK queries and keys of a tile, BH its
width. The one-letter arguments of the kernels (qb, qn, qt, ...) are strides: of the first letter's tensor, over batch,
head and row. `least` and `boost`: a hash of at least `least` keeps a probability, which is then multiplied by `boost`.
"""

import math

import triton
import triton.language as tl

MASKED_SCORE = tl.constexpr(-1e30)  # finite: with minus infinity, a row without any key would become not-a-number
LOG2_E = tl.constexpr(math.log2(math.e))  # the kernels compute exponentials in base 2, as GPUs do


@triton.jit  # type: ignore[untyped-decorator]
def _load_rows(base, row, column, stride, n_rows, n_columns, H_FULL: tl.constexpr):  # type: ignore[no-untyped-def]
    """base[row, column] of a matrix whose columns are contiguous; 0 outside of it. H_FULL: all columns are inside."""
    inside = row[:, None] < n_rows
    if not H_FULL:
        inside = inside & (column[None, :] < n_columns)
    return tl.load(base + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _row_of_key(j, turn, K, RING: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where key j lies."""
    if RING:
        return tl.where(j < turn, j - turn + K, j - turn)
    else:
        return j


@triton.jit  # type: ignore[untyped-decorator]
def _block(N, ROWS: tl.constexpr, BH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a program: the first of its rows, its rows, its columns; its head among all, its batch, its head therein."""
    first = tl.program_id(0) * ROWS
    head = tl.program_id(1).to(tl.int64)
    return first, first + tl.arange(0, ROWS), tl.arange(0, BH), head, head // N, head % N


@triton.jit
def _seen(i, j, T, K, window):  # type: ignore[no-untyped-def]
    """Which pairs of a query and a key exist and count."""
    distance = i[:, None] + (K - T) - j[None, :]
    return (i[:, None] < T) & (j[None, :] < K) & (distance >= 0) & (distance <= window)


@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    q, k, by_distance, i, j, seen, stride, T, K, R, scale,
    EDGE: tl.constexpr, CLAMPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile in base 2; MASKED_SCORE where a pair does not count."""
    if CLAMPS:
        distance = i[:, None] + (K - T) - j[None, :]
        place = by_distance + i[:, None].to(tl.int64) * stride + tl.maximum(R - 1 - distance, 0)
    else:
        row = by_distance + i.to(tl.int64) * stride + (R - 1 - (K - T) - i)
        place = row[:, None] + j[None, :]
    shifted = tl.load(place, mask=seen, other=0.0) if EDGE else tl.load(place)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E) + shifted.to(tl.float32) * LOG2_E
    return tl.where(seen, score, MASKED_SCORE) if EDGE else score


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    q, k, v, g, by_distance, i, j, seen, sums, stride, T, K, R, scale,
    EDGE: tl.constexpr, CLAMPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities of a tile, for the backward pass, and their gradients before dropout."""
    score = _scores(q, k, by_distance, i, j, seen, stride, T, K, R, scale, EDGE, CLAMPS, PRECISION)
    weight = tl.exp2(score - sums[:, None])
    if EDGE:
        weight = tl.where(seen, weight, 0.0)
    return weight, tl.dot(g, tl.trans(v), input_precision=PRECISION)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """A hash of 32 bits: every bit of x changes about half of its bits (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit  # type: ignore[untyped-decorator]
def _dropout_keys(seed, head, DROPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two numbers of 32 bits for a head, used with dropout. Neighbouring heads get keys that have nothing in common."""
    if not DROPS:
        return head, head
    drawn = tl.load(seed)
    low, high = (drawn & 0xFFFFFFFF).to(tl.uint32), ((drawn >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first = _mix(low ^ _mix(head.to(tl.uint32)))
    return first, _mix(high + first)


@triton.jit
def _dropout_factor(first_key, second_key, i, j, K, least, boost):  # type: ignore[no-untyped-def]
    """`boost` for a probability that is kept, 0 for one that is dropped."""
    x = (i[:, None] * K + j[None, :]).to(tl.uint32) ^ first_key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ second_key) * 0x846CA68B
    x = x ^ (x >> 16)
    return tl.where(x.to(tl.int32, bitcast=True) >= least, boost, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _key_range(first, T, K, window, BT: tl.constexpr, BK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys that a block of queries sees: from begin to end; tiles from `whole` to `edge` are seen by all of them."""
    end = tl.minimum(K, first + BT + K - T)
    begin = tl.maximum(0, first + K - T - window) // BK * BK
    whole = (tl.maximum(0, first + BT - 1 + K - T - window) + BK - 1) // BK * BK
    edge = tl.maximum(tl.minimum(K, first + K - T + 1) // BK * BK, begin)
    edge = tl.where(first + BT <= T, edge, begin)  # in the last block some queries do not exist
    return begin, tl.minimum(tl.maximum(whole, begin), edge), edge, end


@triton.jit  # type: ignore[untyped-decorator]
def _query_range(first, T, K, window, BT: tl.constexpr, BK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same for a block of keys: the queries that see it, and those that see all of its keys."""
    begin = tl.maximum(0, first - (K - T)) // BT * BT
    end = tl.maximum(tl.minimum(T, first + BK - (K - T) + window), begin)
    whole = (tl.maximum(0, first + BK - 1 - (K - T)) + BT - 1) // BT * BT
    whole = tl.where(first + BK <= K, whole, end)  # in the last block some keys do not exist
    whole = tl.minimum(tl.maximum(whole, begin), end)
    whole = begin + (whole - begin + BT - 1) // BT * BT
    edge = tl.maximum(tl.minimum(T, first - (K - T) + window + 1) // BT * BT, whole)
    return begin, whole, edge, end


@triton.jit  # type: ignore[untyped-decorator]
def _part(part: tl.constexpr, begin, whole, edge, end):  # type: ignore[no-untyped-def]
    """Where the first edge (part 0), the whole tiles (1) and the second edge (2) begin and end."""
    if part == 0:
        return begin, tl.minimum(whole, end)
    elif part == 1:
        return whole, edge
    else:
        return edge, end


@triton.jit  # type: ignore[untyped-decorator]
def _forward_tiles(  # type: ignore[no-untyped-def]
    q, key, value, by_distance, first_key, second_key, i, h, best, total, result, begin, end,
    kt, vt, dt, T, K, H, R, window, scale, least, boost, turn,
    EDGE: tl.constexpr, CLAMPS: tl.constexpr, DROPS: tl.constexpr, H_FULL: tl.constexpr,
    PRECISION: tl.constexpr, BK: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """The part of `_forward` from one key to another."""
    for start in range(begin, end, BK):
        j = start + tl.arange(0, BK)
        seen = _seen(i, j, T, K, window)
        place = _row_of_key(j, turn, K, RING)
        k = _load_rows(key, place, h, kt, K, H, H_FULL)
        score = _scores(q, k, by_distance, i, j, seen, dt, T, K, R, scale, EDGE, CLAMPS, PRECISION)
        higher = tl.maximum(best, tl.max(score, 1))
        shrink = tl.exp2(best - higher)
        weight = tl.exp2(score - higher[:, None])
        if EDGE:
            weight = tl.where(seen, weight, 0.0)
        total = total * shrink + tl.sum(weight, 1)
        best = higher
        if DROPS:
            weight = weight * _dropout_factor(first_key, second_key, i, j, K, least, boost)
        v = _load_rows(value, place, h, vt, K, H, H_FULL)
        result = result * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
    return best, total, result


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, out, log_sum,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, ob, on, ot,
    N, T, K, H, R, window, scale, least, boost, turn,
    DROPS: tl.constexpr, CLAMPS: tl.constexpr, H_FULL: tl.constexpr,
    PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head against all keys it sees."""
    first, i, h, head, b, n = _block(N, BT, BH)
    key, value, by_distance = key + b * kb + n * kn, value + b * vb + n * vn, by_distance + b * db + n * dn
    q = _load_rows(query + b * qb + n * qn, i, h, qt, T, H, H_FULL)
    best = tl.full([BT], MASKED_SCORE, tl.float32)
    total = tl.zeros([BT], tl.float32)
    result = tl.zeros([BT, BH], tl.float32)
    first_key, second_key = _dropout_keys(seed, head, DROPS)
    begin, whole, edge, end = _key_range(first, T, K, window, BT, BK)
    for part in tl.static_range(3):
        part_begin, part_end = _part(part, begin, whole, edge, end)
        best, total, result = _forward_tiles(
            q, key, value, by_distance, first_key, second_key, i, h, best, total, result, part_begin, part_end,
            kt, vt, dt, T, K, H, R, window, scale, least, boost, turn,
            part != 1, CLAMPS, DROPS, H_FULL, PRECISION, BK, RING,
        )  # fmt: skip
    inside = (i[:, None] < T) & (h[None, :] < H)
    total = tl.where(i < T, total, 1.0)
    result = result / total[:, None]
    place = out + b * ob + n * on + i[:, None].to(tl.int64) * ot + h[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    tl.store(log_sum + head * T + i, best + tl.log2(total), mask=i < T)


@triton.jit  # type: ignore[untyped-decorator]
def _query_tiles(  # type: ignore[no-untyped-def]
    q, g, key, value, by_distance, rows, first_key, second_key, i, h, sums, mean, grad_q, farthest, begin, end,
    kt, vt, dt, T, K, H, R, window, scale, least, boost,
    EDGE: tl.constexpr, CLAMPS: tl.constexpr, DROPS: tl.constexpr, SHIFTS: tl.constexpr, H_FULL: tl.constexpr,
    PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The part of `_backward_queries` from one key to another."""
    for start in range(begin, end, BK):
        j = start + tl.arange(0, BK)
        seen = _seen(i, j, T, K, window)
        k = _load_rows(key, j, h, kt, K, H, H_FULL)
        v = _load_rows(value, j, h, vt, K, H, H_FULL)
        weight, grad_weight = _weights(
            q, k, v, g, by_distance, i, j, seen, sums, dt, T, K, R, scale, EDGE, CLAMPS, PRECISION
        )
        if DROPS:
            grad_weight = grad_weight * _dropout_factor(first_key, second_key, i, j, K, least, boost)
        grad_score = weight * (grad_weight - mean[:, None])
        grad_q += tl.dot(grad_score.to(k.dtype), k, input_precision=PRECISION)
        if SHIFTS:
            # Without clamping, a pair that does not count has a gradient of zero. It is stored too, so that the
            # tensor need not be filled with zeros before.
            column = j[None, :] + (R - 1 - (K - T) - i)[:, None]
            place = rows[:, None] + column
            if CLAMPS:
                alone = seen & (column > 0)
                tl.store(place, grad_score.to(rows.dtype.element_ty), mask=alone)
                farthest += tl.sum(tl.where(alone, 0.0, grad_score), 1)
            elif EDGE:
                inside = (i[:, None] < T) & (column >= 0) & (column < R)
                tl.store(place, grad_score.to(rows.dtype.element_ty), mask=inside)
            else:
                tl.store(place, grad_score.to(rows.dtype.element_ty))
    return grad_q, farthest


@triton.jit  # type: ignore[untyped-decorator]
def _backward_queries(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, out, log_sum, grad_out, row_sum, grad_query, grad_by_distance,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, ob, on, ot, gb, gn, gt,
    N, T, K, H, R, window, scale, least, boost,
    DROPS: tl.constexpr, SHIFTS: tl.constexpr, CLAMPS: tl.constexpr, H_FULL: tl.constexpr,
    PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of queries and of the rows of by_distance; stores sum(grad_out * out) of every row."""
    first, i, h, head, b, n = _block(N, BT, BH)
    key, value, by_distance = key + b * kb + n * kn, value + b * vb + n * vn, by_distance + b * db + n * dn
    q = _load_rows(query + b * qb + n * qn, i, h, qt, T, H, H_FULL)
    g = _load_rows(grad_out + b * gb + n * gn, i, h, gt, T, H, H_FULL)
    o = _load_rows(out + b * ob + n * on, i, h, ot, T, H, H_FULL)
    sums = tl.load(log_sum + head * T + i, mask=i < T, other=0.0)
    mean = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(row_sum + head * T + i, mean, mask=i < T)
    grad_q = tl.zeros([BT, BH], tl.float32)
    farthest = tl.zeros([BT], tl.float32)  # gradient of the first column, which all clamped distances share
    rows = grad_by_distance + b * db + n * dn + i.to(tl.int64) * dt  # it has the strides of by_distance
    first_key, second_key = _dropout_keys(seed, head, DROPS)
    begin, whole, edge, end = _key_range(first, T, K, window, BT, BK)
    for part in tl.static_range(3):
        part_begin, part_end = _part(part, begin, whole, edge, end)
        grad_q, farthest = _query_tiles(
            q, g, key, value, by_distance, rows, first_key, second_key, i, h, sums, mean, grad_q, farthest,
            part_begin, part_end, kt, vt, dt, T, K, H, R, window, scale, least, boost,
            part != 1, CLAMPS, DROPS, SHIFTS, H_FULL, PRECISION, BK,
        )  # fmt: skip
    place = grad_query + (head * T + i[:, None]) * H + h[None, :]
    tl.store(place, (grad_q * scale).to(grad_query.dtype.element_ty), mask=(i[:, None] < T) & (h[None, :] < H))
    if SHIFTS:
        if CLAMPS:
            tl.store(rows, farthest.to(grad_by_distance.dtype.element_ty), mask=i < T)
        else:  # zeros at distances that reach beyond the first key
            nothing = tl.zeros([BT, BK], tl.float32).to(grad_by_distance.dtype.element_ty)
            missing = R - 1 - (K - T) - i
            for start in range(0, R - 1 - (K - T) - first, BK):
                column = start + tl.arange(0, BK)
                inside = (i[:, None] < T) & (column[None, :] < missing[:, None])
                tl.store(rows[:, None] + column[None, :], nothing, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _key_tiles(  # type: ignore[no-untyped-def]
    k, v, query, grad_out, by_distance, log_sum, row_sum, first_key, second_key, head, j, h, grad_k, grad_v, begin, end,
    qt, gt, dt, T, K, H, R, window, scale, least, boost, EDGE: tl.constexpr, CLAMPS: tl.constexpr,
    DROPS: tl.constexpr, H_FULL: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """The part of `_backward_keys` from one query to another."""
    for start in range(begin, end, BT):
        i = start + tl.arange(0, BT)
        sums = tl.load(log_sum + head * T + i, mask=i < T, other=0.0)
        mean = tl.load(row_sum + head * T + i, mask=i < T, other=0.0)
        q = _load_rows(query, i, h, qt, T, H, H_FULL)
        g = _load_rows(grad_out, i, h, gt, T, H, H_FULL)
        seen = _seen(i, j, T, K, window)
        weight, grad_weight = _weights(
            q, k, v, g, by_distance, i, j, seen, sums, dt, T, K, R, scale, EDGE, CLAMPS, PRECISION
        )
        kept = weight
        if DROPS:
            drop = _dropout_factor(first_key, second_key, i, j, K, least, boost)
            grad_weight, kept = grad_weight * drop, weight * drop
        grad_v += tl.dot(tl.trans(kept.to(g.dtype)), g, input_precision=PRECISION)
        grad_score = weight * (grad_weight - mean[:, None])
        grad_k += tl.dot(tl.trans(grad_score.to(q.dtype)), q, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit  # type: ignore[untyped-decorator]
def _backward_keys(  # type: ignore[no-untyped-def]
    query, key, value, by_distance, seed, log_sum, grad_out, row_sum, grad_key, grad_value,
    qb, qn, qt, kb, kn, kt, vb, vn, vt, db, dn, dt, gb, gn, gt,
    N, T, K, H, R, window, scale, least, boost,
    DROPS: tl.constexpr, CLAMPS: tl.constexpr, H_FULL: tl.constexpr,
    PRECISION: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, from all queries that see it."""
    first, j, h, head, b, n = _block(N, BK, BH)
    k = _load_rows(key + b * kb + n * kn, j, h, kt, K, H, H_FULL)
    v = _load_rows(value + b * vb + n * vn, j, h, vt, K, H, H_FULL)
    query, grad_out, by_distance = query + b * qb + n * qn, grad_out + b * gb + n * gn, by_distance + b * db + n * dn
    grad_k = tl.zeros([BK, BH], tl.float32)
    grad_v = tl.zeros([BK, BH], tl.float32)
    begin, whole, edge, end = _query_range(first, T, K, window, BT, BK)
    first_key, second_key = _dropout_keys(seed, head, DROPS)
    for part in tl.static_range(3):
        part_begin, part_end = _part(part, begin, whole, edge, end)
        grad_k, grad_v = _key_tiles(
            k, v, query, grad_out, by_distance, log_sum, row_sum, first_key, second_key, head, j, h, grad_k, grad_v,
            part_begin, part_end, qt, gt, dt, T, K, H, R, window, scale, least, boost, part != 1, CLAMPS, DROPS, H_FULL,
            PRECISION, BT,
        )  # fmt: skip
    inside = (j[:, None] < K) & (h[None, :] < H)
    place = (head * K + j[:, None]) * H + h[None, :]
    tl.store(grad_key + place, (grad_k * scale).to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + place, grad_v.to(grad_value.dtype.element_ty), mask=inside)
