"""Run folders on file systems without locks, and what else may have the lock's name."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from txl.errors import ConfigError
from txl.system import owner_file
from txl.system.run_lock import LOCK, held_lock, is_locked, lock_owner

HOLDER = """
import errno, fcntl, pathlib, sys, time
def flock(file, operation):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
from txl.system.run_lock import held_lock
with held_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_locks(monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


@contextlib.contextmanager
def other_process(folder):
    """A process that holds the lock of a folder on a file system without locks."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_without_locks_one_process_owns_the_folder_at_a_time(no_locks, tmp_path, caplog):
    with other_process(tmp_path) as other:
        assert is_locked(tmp_path) and lock_owner(tmp_path) == f"process {other.pid} on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=f"is in use by process {other.pid}"), held_lock(tmp_path):
            pass
        with held_lock(tmp_path, insist=False):
            pass
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)  # it was killed
    with held_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path) and sorted(path.name for path in tmp_path.iterdir()) == [LOCK]
    assert "the file system has no locks" in caplog.text and "\n" not in caplog.messages[0]


@pytest.mark.parametrize("change", [{"boot": "of an earlier start"}, {"started": "1"}, {"pid": None}])
def test_the_owner_of_an_earlier_start_of_the_machine_is_gone(change, no_locks, tmp_path):
    with held_lock(tmp_path):
        owner = json.loads((tmp_path / owner_file.OWNER).read_text())
    (tmp_path / owner_file.OWNER).write_text(json.dumps(owner | change))
    assert not owner_file.has_living_owner(tmp_path)
    with held_lock(tmp_path):
        pass


def test_a_process_of_another_machine_lives_as_long_as_its_heart_beats(no_locks, tmp_path, monkeypatch):
    path = tmp_path / owner_file.OWNER
    path.write_text(json.dumps({"host": "elsewhere", "boot": "", "pid": 1, "started": "1", "token": ""}))
    with pytest.raises(ConfigError, match="is in use"), held_lock(tmp_path):
        pass
    os.utime(path, (time.time() - 200,) * 2)
    monkeypatch.setattr(owner_file, "HEARTBEAT", 0.05)
    with held_lock(tmp_path):
        os.utime(path, (time.time() - 200,) * 2)
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < time.time() - 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert path.stat().st_mtime > time.time() - 100


@pytest.mark.parametrize("what", ["folder", "link", "FIFO"])
def test_what_is_no_lock_file_is_one_line_and_nothing_is_written(what, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "run" / LOCK
    victim.write_text("precious")
    path.parent.mkdir()
    {"folder": path.mkdir, "link": lambda: path.symlink_to(victim), "FIFO": lambda: os.mkfifo(path)}[what]()
    assert not is_locked(path.parent)
    expected = pytest.raises(ConfigError, match=r"cannot be locked: .*\.lock: .*; remove it if it is a link")
    with expected, held_lock(path.parent):
        pass
    assert victim.read_text() == "precious"
