"""Collectives: sums, gathers and broadcasts over all ranks."""

import os
import socket
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from txl.system.hang_watch import BEFORE_FIRST_STEP, waiting_for_ranks
from txl.system.world import LOOPBACK, World

T = TypeVar("T")

SHORTEST_TIMEOUT = 30.0  # minutes that a collective, or the meeting of the ranks, may take
SHORTEST_HEARTBEAT = 8.0  # minutes; torch's default


def init_process_group(world: World, device: torch.device, hang_minutes: float) -> None:
    """Connect the ranks: gloo on CPUs; nccl for tensors and gloo for control on GPUs.

    Does nothing for a single process, or if the ranks are connected already.

    Args:
        world: This rank among the others.
        device: What this rank computes on.
        hang_minutes: cluster.hang_minutes. The hang watch goes by it; torch's own time limits come later.
    """
    if world.world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            os.environ.update({name: os.environ.get(name, value) for name, value in nccl_watch(hang_minutes).items()})
        timeout = collective_timeout(hang_minutes)
        store = _loopback_store(world, timeout) if os.environ.get(LOOPBACK) else None
        dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=timeout, store=store)


def collective_timeout(hang_minutes: float) -> timedelta:
    """How long torch lets a rank wait for the others in one collective.

    Longer than the hang watch waits, also before the first step: the watch sees that another rank makes progress, as
    one that saves to a slow file system, and torch does not. What is left for torch is a process whose Python is
    blocked, so that the thread of its watch cannot run.
    """
    return timedelta(minutes=max(SHORTEST_TIMEOUT, BEFORE_FIRST_STEP * hang_minutes))


def nccl_watch(hang_minutes: float) -> dict[str, str]:
    """The environment variables of NCCL's own watchdog; what the user has set stays."""
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # an error or a timeout ends the process, without more NCCL calls
        "TORCH_NCCL_ENABLE_MONITORING": "1",  # the process ends, too, if the watchdog itself is stuck for ...
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": f"{60 * max(SHORTEST_HEARTBEAT, hang_minutes):.0f}",
    }


def _loopback_store(world: World, timeout: timedelta) -> Any:
    """Where ranks of one machine meet. Unlike torch's default, no other machine can connect to it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not world.is_main:
        return dist.TCPStore(address, port, world.world_size, False, timeout)  # type: ignore[attr-defined]
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    listening.listen(max(128, world.world_size))
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world.world_size, True, timeout, wait_for_workers=False, master_listen_fd=listening.detach()
    )


def close_process_group() -> None:
    """Wait for all ranks, then disconnect. Collective: a rank that left earlier would make the others abort."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


@waiting_for_ranks()
def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up a tensor over all ranks, in place, and return it. Collective."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


@waiting_for_ranks()
def average_sparse_gradient(grad: Tensor) -> Tensor:
    """A sparse gradient, averaged over all ranks and coalesced, as DistributedDataParallel does for dense ones.

    Every rank adds up in the same order, so that all have the same bits. Collective.
    """
    grad = grad.coalesce()
    if not dist.is_initialized():
        return grad
    rows, values = grad.indices()[0], grad.values()
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows)))
    rows, values = (_gather_padded(part, torch.stack(counts).tolist()) for part in (rows, values))
    return torch.sparse_coo_tensor(rows[None], values / len(counts), grad.shape).coalesce()


def _gather_padded(mine: Tensor, counts: list[int]) -> Tensor:
    """[n, ...] of every rank -> [sum of n, ...] in the order of ranks. `counts`: the n of every rank."""
    padded = mine.new_zeros(max(counts), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@waiting_for_ranks()
def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in the order of ranks, on every rank. Collective."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@waiting_for_ranks()
def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank. Collective."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@waiting_for_ranks()
def barrier() -> None:
    """Wait until all ranks are here. Collective."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # a tensor on the CPU, so gloo does it: no GPU is involved


class AsyncMaximum:
    """The largest integer that any rank has given: a maximum over gloo, read one step after it was started.

    A signal reaches some ranks earlier than others, but all must act on it after the same step. Each call of
    `exchange` starts a reduction and reads the one that the call before it started, so no step waits for the network.
    """

    def __init__(self) -> None:
        self._value = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def exchange(self, value: int) -> int:
        """Give this rank's value (0: nothing); returns the largest value given at the last call. Collective."""
        if not dist.is_initialized():
            return value
        largest = self.wait()
        self._value = torch.tensor([value])
        self._work = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, async_op=True)
        return largest

    def wait(self) -> int:
        """Wait for the reduction under way; returns its result, or 0 if there is none.

        At the end every rank must call it after the same exchange.
        """
        if self._work is None:
            return 0
        with waiting_for_ranks():
            self._work.wait()
        self._work = None
        return int(self._value.item())

    def exchange_now(self, value: int) -> int:
        """Give this rank's value; returns the largest value of all ranks. Waits for the network. Collective."""
        if not dist.is_initialized():
            return value
        self.exchange(value)
        return self.wait()
