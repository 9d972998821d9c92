"""Build a folder exactly once, although many processes may need it at the same time.

The folder is built under a temporary name and renamed when it is complete, so no process ever sees half of it. A lock
file lets one process build while the others wait. The operating system releases the lock when its holder ends, even if
the holder is killed.
"""

import contextlib
import errno
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from txl.errors import ConfigError
from txl.files import LocksUnsupportedError, lock_file

log = logging.getLogger(__name__)

EXISTS = {errno.EEXIST, errno.ENOTEMPTY}


def build_once(folder: Path, build: Callable[[Path], None], is_complete: Callable[[Path], bool]) -> Path:
    """Return `folder`, after `build(draft_folder)` has filled it if it is not complete yet.

    Raises ConfigError if the folder cannot be written.
    """
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder) as locked:
            if not is_complete(folder):
                _build_and_rename(folder, build, is_complete, locked)
    except OSError as error:
        raise ConfigError(f"data.cache={folder.parent} cannot be written: {error}; choose another folder") from error
    return folder


def _build_and_rename(
    folder: Path, build: Callable[[Path], None], is_complete: Callable[[Path], bool], locked: bool
) -> None:
    if locked:  # no other process is building: remove the drafts of processes that were killed
        for abandoned in folder.parent.glob(f".{folder.name}.*.draft"):
            shutil.rmtree(abandoned, ignore_errors=True)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    draft = folder.with_name(f".{folder.name}.{owner}.draft")
    draft.mkdir()
    try:
        build(draft)
        if folder.exists() and not is_complete(folder):
            log.warning("%s is damaged: it is built again", folder)
            damaged = folder.with_name(f".{folder.name}.{owner}.damaged.draft")
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError as error:  # without a lock, another process may have finished first
            if error.errno not in EXISTS or not is_complete(folder):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Wait for the folder's lock. Yields False if the file system has no locks, as some network file systems."""
    with open(folder.with_name(f".{folder.name}.lock"), "a") as lock:
        locked = True
        try:
            if not lock_file(lock):
                log.info("waiting for another process that is building %s", folder)
                lock_file(lock, wait=True)
        except LocksUnsupportedError as error:
            log.warning(
                "%s: the file system has no locks (%s); processes that start together each build the folder",
                folder.parent,
                error,
            )
            locked = False
        yield locked
