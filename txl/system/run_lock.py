"""The lock of a run folder: one training writes in it at a time."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from txl.errors import ConfigError
from txl.files import lock_file

LOCK = ".lock"


@contextlib.contextmanager
def held_lock(run_dir: Path, insist: bool = True) -> Iterator[IO[str]]:
    """Hold the lock of a run folder. It ends with the last process that has the file open.

    Args:
        run_dir: An existing run folder.
        insist: False lets a requeued job continue although a lost node may still hold the lock; `slurm_rank.Attempt`
            keeps the older process from saving.

    Raises:
        ConfigError: If another process holds the lock.
    """
    with open(run_dir / LOCK, "a+") as lock:
        if not lock_file(lock):
            if not insist:
                yield lock
                return
            raise ConfigError(
                f"run_dir={run_dir} is in use by {lock_owner(run_dir)}; wait for it, stop it, or choose another run_dir"
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield lock


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the folder's lock."""
    with contextlib.suppress(FileNotFoundError), open(run_dir / LOCK) as lock:
        return not lock_file(lock)
    return False


def lock_owner(run_dir: Path) -> str:
    """`process 17 on host`, as the process that holds the lock wrote it."""
    return (run_dir / LOCK).read_text() or "another process"
