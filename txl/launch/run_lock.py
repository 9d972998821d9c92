"""The lock of a run folder: one training writes in it at a time."""

import contextlib
import os
import socket
from pathlib import Path

from txl.errors import ConfigError
from txl.files import lock_file


@contextlib.contextmanager
def held_lock(run_dir: Path, insist: bool = True):
    """Nobody else may write in a run folder in use. The lock ends with the last process that holds it.

    `insist=False`: a lost node may hold it still; go on without (rank.Attempt keeps such a process from writing).
    """
    with open(run_dir / ".lock", "a+") as lock:
        if not lock_file(lock):
            if not insist:
                yield lock
                return
            lock.seek(0)
            raise ConfigError(
                f"run_dir={run_dir} is in use by {lock.read() or 'another process'}; "
                "wait for it, stop it, or choose another run_dir"
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield lock


def in_use(run_dir: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if not (run_dir / ".lock").exists():
        return False
    with open(run_dir / ".lock", "a+") as lock:
        return not lock_file(lock)
