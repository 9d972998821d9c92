"""The average of two processes' gradients on one CPU machine, through memory that both see.

gloo sends them through sockets, which takes several times as long. With two processes both ways give the same bits:
each number is halved, then two numbers are added. With more the order of the sum counts, so gloo stays.
"""

import contextlib
import mmap
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from txl.system.distributed import broadcast_object, gather_objects
from txl.system.hang_watch import waiting_for_ranks
from txl.system.world import World

MEMORY_FILES = "/dev/shm"  # where Linux has files that are memory
CHUNK = 2**21  # bytes of a process that are exchanged at a time; larger ones leave the caches (docs/speed-log.md)


@dataclass
class Meeting:
    """What connects two processes.

    Attributes:
        memory: room_for_exchange() bytes, the same in both.
        peer: a socket whose other end the other process has; rank 0's listens until it has come.
    """

    memory: mmap.mmap
    peer: socket.socket

    def wait(self) -> None:
        """Wait until the other process is here as well. Raises RuntimeError if it has ended.

        A socket needs a tenth of the time of gloo's barrier. What either process has written to the memory before,
        both see afterwards: the kernel's locks order it.
        """
        with contextlib.suppress(OSError):
            self.peer.sendall(b".")
            if self.peer.recv(1):
                return
        raise RuntimeError("the other process, with which gradients are averaged, has ended")


class SharedAverage:
    """Averages gradients; `hook` does it for DistributedDataParallel."""

    def __init__(self, rank: int, meeting: Meeting):
        """`rank`: 0 or 1."""
        self.rank, self._turn, self._meeting = rank, 0, meeting
        # The processes write alternately into two places. Who has met the other after writing into one may use the
        # other place: both have read it.
        self._places = torch.frombuffer(meeting.memory, dtype=torch.uint8).view(2, 2, CHUNK)

    @waiting_for_ranks()
    def average(self, values: Tensor) -> None:
        """Average a tensor [n] over both processes, in place. Collective."""
        for part in values.split(CHUNK // values.element_size()):
            place = self._places[self._turn]
            mine, theirs = (place[rank].view(part.dtype)[: len(part)] for rank in (self.rank, 1 - self.rank))
            torch.mul(part, 0.5, out=mine)
            self._meeting.wait()
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
    folder, meeting = new_meeting() if world.is_main else (None, None)
    folder = broadcast_object(folder)
    if folder is not None and not world.is_main:
        meeting = join_meeting(folder)
    both = all(gather_objects(meeting is not None))
    if world.is_main and folder is not None and meeting is not None:
        if both:
            listening, (meeting.peer, _) = meeting.peer, meeting.peer.accept()
            listening.close()
        shutil.rmtree(folder)  # both have its files open, or one cannot
    return SharedAverage(world.rank, meeting) if both and meeting else None


def new_meeting() -> tuple[Path, Meeting] | tuple[None, None]:
    """A folder of this user alone with two files: the memory, all of its room reserved, and a socket that listens.

    The room is reserved because a write beyond it would end the process. Returns None twice if that cannot be had.
    """
    with contextlib.suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix="txl-", dir=MEMORY_FILES))
        try:
            handle = os.open(folder / "memory", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, room_for_exchange())
                memory = mmap.mmap(handle, room_for_exchange())
            finally:
                os.close(handle)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(folder / "socket"))
            listening.listen(1)
            return folder, Meeting(memory, listening)
        except OSError:
            shutil.rmtree(folder)
    return None, None


def join_meeting(folder: Path) -> Meeting | None:
    """Rank 0's memory and socket, if this process sees the folder and it is of the same user."""
    with contextlib.suppress(OSError, ValueError):
        handle = os.open(folder / "memory", os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid == folder.lstat().st_uid == os.getuid():
                memory = mmap.mmap(handle, room_for_exchange())
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(str(folder / "socket"))
                return Meeting(memory, peer)
        finally:
            os.close(handle)
    return None
