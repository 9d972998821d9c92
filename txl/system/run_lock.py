"""The lock of a run folder: one training writes in it at a time.

Where the file system has no locks, a file names the owner instead (owner_file.py).
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from txl.errors import ConfigError
from txl.files import LocksUnsupportedError, lock_file, open_regular_file, read_text_file, truncate_file
from txl.system.owner_file import has_living_owner, owned_folder

log = logging.getLogger(__name__)

LOCK = ".lock"
ATTEMPTS, PAUSE = 5, 0.1  # seconds between them: `txl status` holds the lock for an instant to see whether it is free


@contextlib.contextmanager
def held_lock(run_dir: Path, insist: bool = True) -> Iterator[IO[str]]:
    """Hold the lock of a run folder. It ends with the last process that has the file open.

    Args:
        run_dir: An existing run folder.
        insist: False lets a requeued job continue although a lost node may still hold the lock; `slurm_rank.Attempt`
            keeps the older process from saving.

    Raises:
        ConfigError: If another process holds the lock, or if something else has its name.
    """
    path = run_dir / LOCK
    try:
        descriptor = open_regular_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ConfigError(
            f"run_dir={run_dir} cannot be locked: {path}: {error.strerror}; remove it if it is a link, a folder or a "
            "FIFO, or choose another run_dir"
        ) from None
    with open(descriptor, "a+") as lock, contextlib.ExitStack() as held:
        try:
            is_free = _take(lock)
        except LocksUnsupportedError as error:
            log.warning(
                "%s: the file system has no locks (%s); a file names the owner of the run instead",
                run_dir,
                error.strerror,
            )
            is_free = held.enter_context(owned_folder(run_dir))
        if not is_free:
            if insist:
                raise ConfigError(
                    f"run_dir={run_dir} is in use by {lock_owner(run_dir)}; wait for it, stop it, or choose another "
                    "run_dir"
                )
            yield lock
            return
        truncate_file(lock, 0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield lock


def _take(lock: IO[str]) -> bool:
    for attempt in range(ATTEMPTS):
        if lock_file(lock):
            return True
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE)
    return False


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the folder's lock. Nothing is written."""
    try:
        descriptor = open_regular_file(run_dir / LOCK, os.O_RDONLY)
    except OSError:  # there is no lock, or something that is none
        return False
    with open(descriptor) as lock:
        try:
            return not lock_file(lock)
        except LocksUnsupportedError:
            return has_living_owner(run_dir)


def lock_owner(run_dir: Path) -> str:
    """`process 17 on host`, as the process that holds the lock wrote it."""
    with contextlib.suppress(OSError, ValueError):
        return read_text_file(run_dir / LOCK)[:200] or "another process"
    return "another process"
