"""Who writes in a folder on a file system without locks: a file with host, process and a heartbeat.

The file is created exclusively, which every file system can do. It is stale, and replaced, if its process is gone. On
the same machine that is known at once, also after a restart of the machine. The process of another machine is taken to
be gone when its heartbeat has stopped.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txl.files import read_json

log = logging.getLogger(__name__)

OWNER = ".owner"
HEARTBEAT = 10.0  # seconds between two
PATIENCE = 120.0  # seconds without a heartbeat, after which the process of another machine is taken to be gone


@contextlib.contextmanager
def owned_folder(folder: Path) -> Iterator[bool]:
    """Own a folder while the context lasts. Yields False if a living process owns it."""
    path, me = folder / OWNER, _describe_this_process()
    if not _create(path, me):
        yield False
        return
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, me, ended), name="heartbeat", daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        if read_json(path) == me:
            path.unlink(missing_ok=True)


def has_living_owner(folder: Path) -> bool:
    """Whether a process that lives owns the folder. Nothing is written."""
    path = folder / OWNER
    owner = read_json(path)
    return isinstance(owner, dict) and not _is_gone(path, owner)


def _create(path: Path, me: dict[str, Any]) -> bool:
    """Create the file, in place of a stale one. Returns False if its process lives."""
    for _ in range(3):
        try:
            with open(path, "x") as file:
                json.dump(me, file)
            return True
        except FileExistsError:
            owner = read_json(path)
        if isinstance(owner, dict) and not _is_gone(path, owner):
            return False
        stale = path.with_name(f"{OWNER}.{me['token']}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, stale)
            if read_json(stale) != owner:  # meanwhile another process replaced the stale one, too
                os.rename(stale, path)
                return False
            stale.unlink()
    return False


def _is_gone(path: Path, owner: dict[str, Any]) -> bool:
    """Whether the process that wrote the file has ended."""
    if owner.get("host") != socket.gethostname():
        with contextlib.suppress(OSError):
            return _age(path) > PATIENCE
        return True
    if owner.get("boot") != _boot_id():
        return True
    pid = owner.get("pid")
    return not isinstance(pid, int) or _start_time(pid) != owner.get("started")


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system: machines' own clocks may differ."""
    probe = path.with_name(f"{OWNER}.{uuid.uuid4().hex}")
    try:
        probe.write_bytes(b"")
        now = probe.stat().st_mtime
    except OSError:  # a folder that can only be read
        import time

        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return now - path.stat().st_mtime


def _beat(path: Path, me: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            if read_json(path) == me:
                os.utime(path)


def _describe_this_process() -> dict[str, Any]:
    pid = os.getpid()
    where = {"host": socket.gethostname(), "boot": _boot_id()}
    return where | {"pid": pid, "started": _start_time(pid), "token": uuid.uuid4().hex}


def _boot_id() -> str:
    """Another one after every start of the machine; empty where it is not known."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_time(pid: int) -> str | None:
    """When a process started, in ticks since the machine did: ids are used again. None if there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""  # it lives, on a machine without /proc
