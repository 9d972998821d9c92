"""LAMB for GPUs: three launches for all parameters, 40 bytes of memory traffic for each number.

1. Every program takes CHUNK numbers of one tensor: it updates their moments and sums up the squares of weights and of
   updates (28 bytes are read or written).
2. Every program adds up the sums of one tensor, in a fixed order, and computes the tensor's rate.
3. As 1: the update is computed again from the moments, and is subtracted (16 bytes).

The tensors lie anywhere in memory. So the kernels get tables of addresses, which the host writes for every step.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from txl.system.devices import copy_to_device

CHUNK = 2**16  # numbers of a program
BLOCK = 2048  # numbers that it reads at a time


@triton.jit
def _tensor(addresses, row, tensor, n_tensors):  # type: ignore[no-untyped-def]
    """A pointer from the table [4, n_tensors]: weights, gradients, first moments, second moments."""
    return tl.load(addresses + row * n_tensors + tensor).to(tl.pointer_type(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _chunk(tensor_of, first_of, sizes, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a program: its chunk, the chunk's tensor, its first number in the tensor, and the tensor's size."""
    chunk = tl.program_id(0)
    tensor = tl.load(tensor_of + chunk)
    begin = (chunk - tl.load(first_of + tensor)).to(tl.int64) * CHUNK
    return chunk, tensor, begin, tl.load(sizes + tensor)


@triton.jit  # type: ignore[untyped-decorator]
def _update_moments(  # type: ignore[no-untyped-def]
    addresses, tensor_of, first_of, sizes, n_tensors, sums, factor, skip, beta1, beta2, eps, decay,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """New moments of a chunk; sums[chunk] = squares of its weights and of its update. A skipped step stores nothing."""
    chunk, tensor, begin, size = _chunk(tensor_of, first_of, sizes, CHUNK)
    weights, grads = _tensor(addresses, 0, tensor, n_tensors), _tensor(addresses, 1, tensor, n_tensors)
    means, squares = _tensor(addresses, 2, tensor, n_tensors), _tensor(addresses, 3, tensor, n_tensors)
    scale, kept_size = tl.load(factor), tl.where(tl.load(skip) == 0, size, 0)
    of_weights = tl.zeros([BLOCK], tl.float32)
    of_updates = tl.zeros([BLOCK], tl.float32)
    for start in range(0, CHUNK, BLOCK):
        i = begin + start + tl.arange(0, BLOCK)
        inside = i < size
        weight = tl.load(weights + i, mask=inside, other=0.0)
        grad = tl.load(grads + i, mask=inside, other=0.0) * scale
        mean = tl.load(means + i, mask=inside, other=0.0) * beta1 + grad * (1 - beta1)
        square = tl.load(squares + i, mask=inside, other=0.0) * beta2 + grad * grad * (1 - beta2)
        update = mean / (tl.sqrt(square) + eps) + weight * decay
        tl.store(means + i, mean, mask=i < kept_size)
        tl.store(squares + i, square, mask=i < kept_size)
        of_weights += weight * weight
        of_updates += update * update
    tl.store(sums + 2 * chunk, tl.sum(of_weights, 0))
    tl.store(sums + 2 * chunk + 1, tl.sum(of_updates, 0))


@triton.jit
def _rates(sums, first_of, rates, skip, lr, eps, most):  # type: ignore[no-untyped-def]
    """rates[tensor] = lr * min(||weight||, most) / (||update|| + eps); lr if either norm is 0; 0 for a skipped step."""
    tensor = tl.program_id(0)
    of_weights, of_updates = 0.0, 0.0
    for chunk in range(tl.load(first_of + tensor), tl.load(first_of + tensor + 1)):
        of_weights += tl.load(sums + 2 * chunk)
        of_updates += tl.load(sums + 2 * chunk + 1)
    weight_norm, update_norm = tl.sqrt(of_weights), tl.sqrt(of_updates)
    ratio = tl.minimum(weight_norm, most) / (update_norm + eps)
    ratio = tl.where((weight_norm == 0) | (update_norm == 0), 1.0, ratio)
    tl.store(rates + tensor, tl.where(tl.load(skip) == 0, lr * ratio, 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _subtract_updates(  # type: ignore[no-untyped-def]
    addresses, tensor_of, first_of, sizes, n_tensors, rates, skip, eps, decay,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """weight -= rate * update, for a chunk."""
    _, tensor, begin, size = _chunk(tensor_of, first_of, sizes, CHUNK)
    weights, means = _tensor(addresses, 0, tensor, n_tensors), _tensor(addresses, 2, tensor, n_tensors)
    squares, rate = _tensor(addresses, 3, tensor, n_tensors), tl.load(rates + tensor)
    size = tl.where(tl.load(skip) == 0, size, 0)
    for start in range(0, CHUNK, BLOCK):
        i = begin + start + tl.arange(0, BLOCK)
        inside = i < size
        weight = tl.load(weights + i, mask=inside, other=0.0)
        mean, square = tl.load(means + i, mask=inside, other=0.0), tl.load(squares + i, mask=inside, other=0.0)
        update = mean / (tl.sqrt(square) + eps) + weight * decay
        tl.store(weights + i, weight - rate * update, mask=inside)


def step_in_three_launches(
    tensors: Sequence[Sequence[Tensor]],
    group: dict[str, Any],
    largest_norm: float,
    factor: Tensor | None,
    skip: Tensor | None,
) -> None:
    """One step of LAMB for the parameters of a group. The host does not wait for the device.

    Args:
        tensors: weights, gradients, first moments and second moments, each a list in the same order; contiguous, in
            float32, on one device.
        group: the optimizer's options: lr, betas, eps, weight_decay.
        largest_norm: a weight's norm counts as at most this.
        factor: [] on the device, multiplies the gradients; None: 1.
        skip: [] or [1] on the device: 1 if nothing may change; None: 0.
    """
    weights, device, (beta1, beta2) = tensors[0], tensors[0][0].device, group["betas"]
    addresses = copy_to_device(torch.tensor([[t.data_ptr() for t in row] for row in tensors]), device)
    sizes = [weight.numel() for weight in weights]
    counts = torch.tensor([-(-size // CHUNK) for size in sizes])
    first_of = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    tensor_of = torch.arange(len(sizes)).repeat_interleave(counts)
    n_chunks, table = int(first_of[-1]), [tensor_of.int(), first_of.int(), torch.tensor(sizes)]
    tensor_of, first_of, device_sizes = (copy_to_device(one, device) for one in table)
    sums, rates = torch.empty(n_chunks, 2, device=device), torch.empty(len(sizes), device=device)
    factor = torch.ones((), device=device) if factor is None else factor.float()
    skip = torch.zeros((), device=device) if skip is None else skip
    chunks = (addresses, tensor_of, first_of, device_sizes, len(sizes))
    eps, decay, blocks = group["eps"], group["weight_decay"], {"CHUNK": CHUNK, "BLOCK": BLOCK}
    _update_moments[(n_chunks,)](*chunks, sums, factor, skip, beta1, beta2, eps, decay, **blocks)
    _rates[(len(sizes),)](sums, first_of, rates, skip, group["lr"], eps, largest_norm)
    _subtract_updates[(n_chunks,)](*chunks, rates, skip, eps, decay, **blocks)
