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
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from txl.errors import ConfigError
from txl.files import LocksUnsupportedError, lock_file

log = logging.getLogger(__name__)

EXISTS = {errno.EEXIST, errno.ENOTEMPTY}


def build_once(
    folder: Path,
    build: Callable[[Path], None],
    find_damage: Callable[[Path], str | None],
    is_checked: Callable[[Path], bool] = lambda folder: False,
) -> Path:
    """Return `folder`, after `build(draft_folder)` has filled it if something in it is missing or damaged.

    Args:
        folder: The folder. Its name must depend on everything that its content depends on.
        build: Fills an existing empty folder.
        find_damage: What is missing or damaged in a folder, for a message; None: nothing. It may take long: one process
            asks it while the others wait.
        is_checked: Whether a folder needs no such search, because another process has just done it.

    Returns:
        `folder`.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    if is_checked(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder) as locked:
            damage = None if is_checked(folder) else find_damage(folder)
            if damage is not None:
                _build_and_rename(folder, build, find_damage, locked)
    except OSError as error:
        damage = find_damage(folder)  # a folder that somebody else prepared, where this user may not write
        if damage is not None:
            problem = f", and {folder.name} there has to be made: {damage}" if os.path.lexists(folder) else ""
            raise ConfigError(
                f"data.cache={folder.parent} cannot be written: {error}{problem}; choose another folder"
            ) from error
    return folder


def _build_and_rename(
    folder: Path, build: Callable[[Path], None], find_damage: Callable[[Path], str | None], locked: bool
) -> None:
    if locked:  # no other process is building: remove the drafts of processes that were killed
        for abandoned in folder.parent.glob(f".{folder.name}.*.draft"):
            _remove(abandoned)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    draft = folder.with_name(f".{folder.name}.{owner}.draft")
    draft.mkdir()
    try:
        build(draft)
        if os.path.lexists(folder) and (damage := find_damage(folder)) is not None:
            log.warning("%s is damaged (%s): it is built again", folder, damage)
            damaged = folder.with_name(f".{folder.name}.{owner}.damaged.draft")
            folder.rename(damaged)
            _remove(damaged)
        try:
            draft.rename(folder)
        except OSError as error:  # without a lock, another process may have finished first
            if error.errno not in EXISTS or find_damage(folder) is not None:
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a folder with its content, or whatever else has this name; a link only, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Wait for the folder's lock. Yields False if the file system has no locks, as some network file systems."""
    path = folder.with_name(f".{folder.name}.lock")
    # Whatever else has the name of the lock is an error: a link is not followed, and a FIFO would wait for ever.
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "a") as lock:
        if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
            raise OSError(errno.EEXIST, f"{path} is not a file; remove it")
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
