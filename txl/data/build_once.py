"""A folder that is made once, however many processes need it at the same time.

It is made under another name and renamed when it is whole, so that nobody sees half of it. A lock file lets one process
work while the others wait; the system lifts the lock when its holder ends, killed or not.
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


def made_once(folder: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
    """`folder`, filled by `make(draft)` unless it is whole already. Raises ConfigError where it cannot be written."""
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as alone:
            if not is_whole(folder):
                _make(folder, make, is_whole, alone)
    except OSError as error:
        raise ConfigError(f"data.cache={folder.parent} cannot be written: {error}; choose another folder") from error
    return folder


def _make(folder: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool], alone: bool) -> None:
    if alone:
        for left in folder.parent.glob(f".{folder.name}.*.draft"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    draft = folder.with_name(f".{folder.name}.{owner}.draft")
    draft.mkdir()
    try:
        make(draft)
        if folder.exists() and not is_whole(folder):
            log.warning("%s is damaged: it is made anew", folder)
            damaged = folder.with_name(f".{folder.name}.{owner}.damaged.draft")
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError as error:  # without a lock, somebody else may have been first
            if error.errno not in EXISTS or not is_whole(folder):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait for the folder's lock; yields whether there is one: some network filesystems have none."""
    with open(folder.with_name(f".{folder.name}.lock"), "a") as lock:
        alone = True
        try:
            if not lock_file(lock):
                log.info("waiting for another process, which is making %s", folder)
                lock_file(lock, wait=True)
        except LocksUnsupportedError as error:
            log.warning("%s: no locks here (%s); processes that start together each do the work", folder.parent, error)
            alone = False
        yield alone
