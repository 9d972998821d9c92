"""The kernels of attention_kernel.py as one operator of torch, with its gradient.

As an operator it is a single node for torch.compile, so that a layer with it is one program.

Shapes: B batch, N heads, T queries, K keys, H head width, R distances.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from txl.model.attention_kernel import _backward_keys, _backward_queries, _forward


class Tile(NamedTuple):
    """Sizes with which the kernels are launched."""

    queries: int
    keys: int
    options: dict[str, int]  # of Triton's launch


HALF_TILE = Tile(64, 64, {})
# In float32 a tile of 64 keys needs up to 147 KiB of shared memory, and many GPUs have 99 KiB (compute capability 8.6
# and 8.9). This one needs at most 91.
FULL_TILE = Tile(64, 32, {"num_stages": 2})


def tile_of(dtype: torch.dtype) -> Tile:
    """The sizes for keys and values of this dtype."""
    return FULL_TILE if dtype == torch.float32 else HALF_TILE


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    window: int | None,
    dropatt: float,
    ring_offset: int = 0,
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
        ring_offset: key j lies in row (j - ring_offset) mod K of `key` and `value`. Without a gradient only.

    Returns:
        [B, N, T, H] in the dtype of key and value.
    """
    (B, N, T, _), K = query.shape, key.shape[2]
    by_distance = by_distance.to(key.dtype).expand(B, N, T, -1)
    # Drawn on the device, where the kernels read it, so that the host need not wait.
    seed = torch.randint(2**62, (1,), device=query.device) if dropatt > 0 else None
    out: Tensor
    out, _ = attention_operator(
        query.to(key.dtype), key, value, by_distance, seed, K if window is None else window, dropatt, ring_offset
    )
    return out


@torch.library.custom_op("txl::relative_attention", mutates_args=())
def attention_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    seed: Tensor | None,
    window: int,
    dropatt: float,
    ring_offset: int,
) -> tuple[Tensor, Tensor]:
    """The forward pass: one launch, a program for every block of queries and every head.

    Args:
        query: [B, N, T, H].
        key: [B, N, K, H].
        value: [B, N, K, H].
        by_distance: [B, N, T, R].
        seed: [1], int64; None without dropout.
        window: largest distance that a query sees.
        dropatt: dropout of the probabilities.
        ring_offset: as in `relative_attention`.

    Returns:
        The result [B, N, T, H], and for the backward pass the logarithm of each row's sum [B, N, T].
    """
    B, N, T, H = query.shape
    out = query.new_empty(B, T, N, H).transpose(1, 2)  # contiguous for the output projection, which reads it next
    log_sum = query.new_empty(B, N, T, dtype=torch.float32)
    _forward[triton.cdiv(T, tile_of(key.dtype).queries), B * N](
        query, key, value, by_distance, seed, out, log_sum, *_strides(query, key, value, by_distance, out),
        *_sizes(query, key, by_distance, window, dropatt), ring_offset, RING=ring_offset > 0,
        **_constants(query, key, by_distance, window, dropatt),
    )  # fmt: skip
    return out, log_sum


@attention_operator.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, N, T, H = query.shape
    return query.new_empty(B, T, N, H).transpose(1, 2), query.new_empty(B, N, T, dtype=torch.float32)


@torch.library.custom_op("txl::relative_attention_backward", mutates_args=())
def attention_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    seed: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    grad_out: Tensor,
    window: int,
    dropatt: float,
    shifts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass: one launch by blocks of queries, then one by blocks of keys.

    Args:
        query: [B, N, T, H].
        key: [B, N, K, H].
        value: [B, N, K, H].
        by_distance: [B, N, T, R].
        seed: as in the forward pass.
        out: its result [B, N, T, H].
        log_sum: its second result [B, N, T].
        grad_out: the gradient of `out`.
        window: as in the forward pass.
        dropatt: as in the forward pass.
        shifts: compute the gradient of by_distance, too.

    Returns:
        The gradients of query, key, value and by_distance; the last one is empty without `shifts`.
    """
    (B, N, T, _), K = query.shape, key.shape[2]
    sizes = _sizes(query, key, by_distance, window, dropatt)
    constants, tile = _constants(query, key, by_distance, window, dropatt), tile_of(key.dtype)
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    row_sum = torch.empty_like(log_sum)
    grad_query, grad_key, grad_value = (_contiguous_like(x) for x in (query, key, value))
    grad_by_distance = query.new_empty(0)
    if shifts:
        # With clamped distances nothing is stored for a query that has no key at some distance.
        make = torch.zeros_like if constants["CLAMPS"] else torch.empty_like
        grad_by_distance = make(by_distance)
        assert grad_by_distance.stride() == by_distance.stride()
    _backward_queries[triton.cdiv(T, tile.queries), B * N](
        query, key, value, by_distance, seed, out, log_sum, grad_out, row_sum, grad_query, grad_by_distance,
        *_strides(query, key, value, by_distance, out, grad_out), *sizes, SHIFTS=shifts, **constants,
    )  # fmt: skip
    _backward_keys[triton.cdiv(K, tile.keys), B * N](
        query, key, value, by_distance, seed, log_sum, grad_out, row_sum, grad_key, grad_value,
        *_strides(query, key, value, by_distance, grad_out), *sizes, **constants,
    )  # fmt: skip
    return grad_query, grad_key, grad_value, grad_by_distance


@attention_gradients.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, by_distance: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, shifts = rest
    like_by_distance = torch.empty_like(by_distance) if shifts else query.new_empty(0)
    return *(_contiguous_like(x) for x in (query, key, value)), like_by_distance


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.dropatt, ring_offset = inputs
    assert ring_offset == 0, "keys in a ring buffer have no gradient"
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


@functools.partial(attention_operator.register_autograd, setup_context=_save_inputs)
def _differentiate(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    shifts = ctx.needs_input_grad[3]
    found = attention_gradients(*ctx.saved_tensors, grad_out, ctx.window, ctx.dropatt, shifts)
    return *found[:3], found[3] if shifts else None, None, None, None, None


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _strides(*tensors: Tensor) -> list[int]:
    """Strides over batch, head and row of each tensor. That of the last dimension must be 1."""
    assert all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in tensors)
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _sizes(query: Tensor, key: Tensor, by_distance: Tensor, window: int, dropatt: float) -> tuple[float, ...]:
    """The kernels' arguments from N to boost."""
    (_, N, T, H), K, R = query.shape, key.shape[2], by_distance.shape[-1]
    least = min(2**31 - 1, round(dropatt * 2**32) - 2**31)  # hashes are spread evenly from -2^31 on
    return N, T, K, H, R, window, H**-0.5, least, 1 / (1 - dropatt)


def _constants(query: Tensor, key: Tensor, by_distance: Tensor, window: int, dropatt: float) -> dict[str, Any]:
    """What the kernels are compiled for."""
    H, tile = query.shape[-1], tile_of(key.dtype)
    width = max(16, triton.next_power_of_2(H))
    return dict(
        DROPS=dropatt > 0,
        CLAMPS=by_distance.shape[-1] < min(key.shape[2], window + 1),
        H_FULL=width == H,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        BT=tile.queries,
        BK=tile.keys,
        BH=width,
        **tile.options,
    )
