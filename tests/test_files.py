"""JSON files, checksums and locks."""

import errno
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from txl.files import (
    LocksUnsupportedError,
    flatten,
    json_values,
    lock_file,
    read_json,
    sha256_of_file,
    to_json,
    write_json,
)


def test_values_become_strict_json():
    values = {1: np.float32(0.5), "a": (Path("x"), None, True, np.int64(3)), "b": {"c": float("-inf")}}
    expected = {"1": 0.5, "a": ["x", None, True, 3], "b": {"c": None}}
    assert json_values(values) == expected
    assert json.loads(to_json(values)) == expected


def test_a_state_keeps_its_infinities(tmp_path):
    write_json(tmp_path / "state.json", {"best": math.inf}, keep_non_finite=True)
    assert read_json(tmp_path / "state.json") == {"best": math.inf}
    write_json(tmp_path / "state.json", {"best": math.inf})
    assert read_json(tmp_path / "state.json") == {"best": None}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", [1])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", [2])
    assert read_json(tmp_path / "a.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_device_is_written_not_replaced():
    write_json(Path(os.devnull), {"a": 1})
    assert Path(os.devnull).is_char_device()


def test_a_damaged_or_missing_file_is_none(tmp_path):
    (tmp_path / "torn.json").write_text('{"a": ')
    assert read_json(tmp_path / "torn.json") is None
    assert read_json(tmp_path / "missing.json") is None


def test_nested_keys_are_joined():
    values = {"a": {"b": {"c": 1}}, "d": 2}
    assert flatten(values) == {"a.b.c": 1, "d": 2}
    assert flatten(values, "/") == {"a/b/c": 1, "d": 2}


def test_the_checksum_of_a_file_is_its_contents_sha256(tmp_path):
    content = b"0123456789" * 200_000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_one_open_file_holds_the_lock(tmp_path):
    with open(tmp_path / ".lock", "a") as first, open(tmp_path / ".lock", "a") as second:
        assert lock_file(first)
        assert not lock_file(second)
        first.close()
        assert lock_file(second, wait=True)


def test_a_file_system_without_locks_is_an_error_of_its_own(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with open(tmp_path / ".lock", "a") as file, pytest.raises(LocksUnsupportedError, match="not supported"):
        lock_file(file)
