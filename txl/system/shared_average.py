"""The average of two processes' gradients on one CPU machine, through memory that both see.

gloo sends them through sockets, which takes twice the time. With two processes both ways give the same bits: each
number is halved, then two numbers are added. With more the order of the sum counts, so gloo stays.
"""

import contextlib
import mmap
import os
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor

from txl.system.distributed import barrier, broadcast_object, gather_objects
from txl.system.world import World

MEMORY_FILES = "/dev/shm"  # where Linux has files that are memory
CHUNK = 2**24  # bytes of a process that are exchanged at a time: those of both fit into a large cache


class SharedAverage:
    """Averages gradients; `hook` does it for DistributedDataParallel."""

    def __init__(self, rank: int, memory: mmap.mmap):
        """`memory`: of room_for_exchange() bytes, the same in both processes."""
        self.rank, self._turn = rank, 0
        # The processes write alternately into two places. Who has met the other after writing into one may use the
        # other place: both have read it.
        self._places = torch.frombuffer(memory, dtype=torch.uint8).view(2, 2, CHUNK)

    def average(self, values: Tensor) -> None:
        """Average a tensor [n] over both processes, in place. Collective."""
        for part in values.split(CHUNK // values.element_size()):
            place = self._places[self._turn]
            mine, theirs = (place[rank].view(part.dtype)[: len(part)] for rank in (self.rank, 1 - self.rank))
            torch.mul(part, 0.5, out=mine)
            barrier()
            torch.add(mine, theirs, out=part)
            self._turn = 1 - self._turn

    def hook(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Average the bucket; torch asks for a future."""
        self.average(bucket.buffer())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


def room_for_exchange() -> int:
    """Bytes of memory that both processes share."""
    return 4 * CHUNK


def share_memory(world: World) -> SharedAverage | None:
    """Two processes of one machine prepare to exchange gradients. Collective.

    Returns None if there are not two, or if they have no memory in common: on two machines, in containers of their
    own, or where it has no room. Then gloo averages.
    """
    if world.world_size != 2:
        return None
    found: tuple[str, mmap.mmap] | None = None
    if world.is_main:
        found = new_memory()
    path = broadcast_object(found[0] if found else None)
    if path is not None and not world.is_main:
        found = memory_of(path)
    both = all(gather_objects(found is not None))
    if world.is_main and path is not None:
        os.unlink(path)  # both have it open, or one cannot
    return SharedAverage(world.rank, found[1]) if both and found else None


def new_memory() -> tuple[str, mmap.mmap] | None:
    """A file of this user alone, with all of its room reserved: a write beyond it would end the process."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="txl-", dir=MEMORY_FILES)
        try:
            os.posix_fallocate(handle, 0, room_for_exchange())
            return path, mmap.mmap(handle, room_for_exchange())
        except OSError:
            os.unlink(path)
        finally:
            os.close(handle)
    return None


def memory_of(path: str) -> tuple[str, mmap.mmap] | None:
    """The file of rank 0, if this process sees it and it is of the same user."""
    with contextlib.suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid == os.getuid():
                return path, mmap.mmap(handle, room_for_exchange())
        finally:
            os.close(handle)
    return None
