"""Collectives: sums, gathers and broadcasts over all ranks."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from txl.system.world import World


def init_process_group(world: World, device: torch.device) -> None:
    """gloo on the CPU; nccl (and gloo for control) on GPUs. Nothing for a single process, or a second time."""
    if world.world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=timedelta(minutes=30))


def close_process_group() -> None:
    """Leave together: a rank that is gone takes its half of a connection with it, and the others abort."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def average_rows(grad: Tensor) -> Tensor:
    """A sparse gradient -> the average over all ranks, coalesced, as DistributedDataParallel does for dense ones.

    Every rank adds up in the same order, so that all have the same bits.
    """
    grad = grad.coalesce()
    if not dist.is_initialized():
        return grad
    rows, values = grad.indices()[0], grad.values()
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows)))
    rows, values = (gather_padded(part, torch.stack(counts).tolist()) for part in (rows, values))
    return torch.sparse_coo_tensor(rows[None], values / len(counts), grad.shape).coalesce()


def gather_padded(mine: Tensor, counts: list[int]) -> Tensor:
    """[n, ...] of every rank -> [sum of n, ...] by rank. `counts`: the n of every rank."""
    padded = mine.new_zeros(max(counts), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_objects(value: object) -> list:
    """Every rank's value, on every rank, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: object) -> object:
    """Rank 0's value."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # over gloo, also where GPUs train: no device is involved


class Agreement:
    """Do all ranks stop at the same step? An asynchronous maximum over gloo, read one step later.

    A signal reaches some ranks earlier than others. Each step starts a reduction of the flag raised so far and
    reads the one that the step before started, so no step waits for the network.
    """

    def __init__(self):
        self._flag: Tensor | None = None
        self._work = None

    def exchange(self, wish: int) -> int:
        """Give this rank's wish (0: go on); returns the largest wish of all ranks, as of the last call."""
        if not dist.is_initialized():
            return wish
        agreed = 0
        if self._work is not None:
            self._work.wait()
            agreed = int(self._flag.item())
        self._flag = torch.tensor([wish])
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        return agreed

    def settle(self) -> None:
        """Wait for what is under way; all ranks call it after the same exchange."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def at_once(self, wish: int) -> int:
        """The largest wish of all ranks, for which this one waits."""
        answer = self.exchange(wish)
        if self._work is not None:
            self.settle()
            answer = int(self._flag.item())
        return answer
