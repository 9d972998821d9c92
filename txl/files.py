"""Files that survive a crash, JSON, file locks and checksums, and where the project's own files are."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

PACKAGE = Path(__file__).resolve().parent  # txl/
PROJECT = PACKAGE.parent  # what has to be on Python's path: a checkout, a run's copy of the code, or site-packages
INSTALLED = (PACKAGE / "conf").is_dir()  # from a wheel, which has conf/ inside the package
CONF = PACKAGE / "conf" if INSTALLED else PROJECT / "conf"

# What flock raises on a file system that has no locks (some network file systems).
LOCKS_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

PROBE_BYTES = 4096  # written once to find a read-only or full file system

BLOCK_BYTES = 1 << 20  # read at a time for a checksum
LINES_BYTES = 1 << 20  # of lines that are read at a time; a line may not be longer
DAMAGED_LINE = b"\0"  # stands for a longer one
MOST_JSON_BYTES = 1 << 30  # of a JSON file

# How compressed files begin, and the programs that unpack them.
UNPACKED_BY = {
    b"\x1f\x8b": "gunzip",
    b"PK\x03\x04": "unzip",
    b"BZh91AY&SY": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


# What fsync of a folder raises on file systems that cannot do it.
FOLDER_SYNC_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

# --------------------------------------------------------------------------- on the disk


def write_text_file(path: Path, text: str) -> None:
    """Writes a text file in one step: a reader finds the old file or the new one, never a part of it.

    The file is on disk when the function returns, also after a power cut. A device or a pipe is written directly.

    Raises:
        OSError: The file cannot be written. No part of it is left behind.
    """
    if is_special_file(path):
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(path.name + ".partial")
    if partial.is_symlink():
        partial.unlink()
    try:
        with open(open_regular_file(partial, NEW_FILE), "w", encoding="utf-8") as file:
            file.write(text)
            sync_file(file)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_special_file(path: Path) -> bool:
    """Whether this is a device, a pipe or a folder, such as /dev/stdout: it is written directly, never replaced."""
    return path.exists() and not path.is_file()


def open_regular_file(path: Path, flags: int) -> int:
    """Opens a file that must not be anything else, and returns its descriptor. `flags`: of os.open.

    A link is not followed: in a shared folder it could lead to somebody's file. A FIFO would wait for ever.

    Raises:
        OSError: There is a link, a folder, a FIFO or a device in its place, or the file cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EEXIST, "is not a file", str(path))
    return descriptor


def unpacking_program(beginning: bytes) -> str | None:
    """Returns the program that unpacks a file, by its first bytes; None if they are not those of a compressed file."""
    return next((program for begin, program in UNPACKED_BY.items() if beginning.startswith(begin)), None)


def read_text_file(path: Path, most: int | None = None) -> str:
    """Returns the text of a file.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        OSError: It is missing, or a folder or a FIFO, which would wait for ever.
        ValueError: It is no UTF-8, or too large.
    """
    with open_for_reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"it has {size:,} bytes, more than {most:,}")
        return io.TextIOWrapper(file, encoding="utf-8").read()


def open_for_reading(path: Path) -> BinaryIO:
    """Opens a file of a run. Links are followed.

    Raises:
        OSError: It is missing, or a folder, a FIFO, which would wait for ever, or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    return open(descriptor, "rb")


def read_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Reads a file's lines, with their ends, about a megabyte at a time.

    A line of more than LINES_BYTES, such as gigabytes of zeros after a crash of the machine, is no record: it is read
    as DAMAGED_LINE, so that it does not fill the memory.
    """
    rest = b""
    while block := file.read(LINES_BYTES):
        lines = io.BytesIO(rest + block).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        rest = DAMAGED_LINE if len(rest) > LINES_BYTES else rest
        if lines:
            yield lines
    if rest:
        yield [rest]


def sync_file(file: IO[Any]) -> None:
    """Puts what was written to an open file on the disk, so that it survives a power cut."""
    file.flush()
    os.fsync(file.fileno())


def truncate_file(file: IO[Any], size: int) -> None:
    """Shortens an open file. Unlike `file.truncate`, it tries again when a signal interrupts the call."""
    file.flush()
    os.ftruncate(file.fileno(), size)


def sync_folder(folder: Path) -> None:
    """Puts a folder's list of names on the disk, so that a power cut cannot undo a rename in it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_SYNC_UNSUPPORTED:
            raise


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, where they are missing, so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


# --------------------------------------------------------------------------- paths


def short_path(path: Path) -> Path:
    """Returns the path as seen from the working directory, if it is below it."""
    try:
        return path.absolute().relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


# --------------------------------------------------------------------------- JSON


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if it is missing, damaged, or no file (a FIFO would block)."""
    try:
        return parse_json(read_text_file(path, MOST_JSON_BYTES))
    except (OSError, ValueError):
        return None


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text stands for. Raises ValueError if it is no JSON, or nested too deeply for the parser."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: Path, value: Any, *, indent: int | None = None, keep_non_finite: bool = False) -> None:
    """Writes a JSON file in one step: a reader finds the old file or the new one, never a part of it.

    The file is on disk when the function returns. A device or a pipe is written directly.

    Args:
        path: The file. Its folder must exist.
        value: Dicts, lists, numbers, text. Other values are converted by `json_values`.
        indent: Spaces per level. None writes one line, which is much faster for large values.
        keep_non_finite: Write NaN and Infinity, which Python reads back, instead of null. For values that must come
            back exactly, such as the state of a training.

    Raises:
        OSError: The file cannot be written. No part of it is left behind.
    """
    text = to_json(value, indent=indent, keep_non_finite=keep_non_finite) + ("" if indent is None else "\n")
    write_text_file(path, text)


def to_json(value: Any, *, indent: int | None = None, keep_non_finite: bool = False) -> str:
    """Returns a value as JSON text. `json_values` converts what JSON cannot hold; see `write_json` for the options."""
    try:
        return json.dumps(value, indent=indent, allow_nan=keep_non_finite)
    except (TypeError, ValueError):
        converted = value if keep_non_finite else json_values(value)
        return json.dumps(converted, indent=indent, allow_nan=keep_non_finite)


def json_values(value: Any) -> Any:
    """Converts a value to what strict JSON can hold.

    NaN and infinity become null, a scalar of numpy or torch becomes a number, and an unknown object becomes its text.
    """
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def flatten(values: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested dicts: {"train": {"lr": 1}} becomes {"train.lr": 1}."""
    keys: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            keys |= flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            keys[prefix + name] = value
    return keys


# --------------------------------------------------------------------------- folders


def probe_folder(folder: Path) -> None:
    """Raises OSError if a file cannot be written in an existing folder: no permission, read-only or full disk."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(b"0" * PROBE_BYTES)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


# --------------------------------------------------------------------------- checksums


class Hash(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes to what is hashed."""

    def hexdigest(self) -> str:
        """Returns the hash of all bytes so far, in hex."""


def sha256_of_json(value: Any) -> str:
    """Returns the sha256, in hex, of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Returns the sha256, in hex, of a file's content."""
    return hash_of_file(path, hashlib.sha256())


def hash_of_file(path: Path, hash: Hash) -> str:
    """Adds a file's content to a hash and returns the hash in hex."""
    with open_for_reading(path) as file:
        while block := file.read(BLOCK_BYTES):
            hash.update(block)
    return hash.hexdigest()


# --------------------------------------------------------------------------- locks


class LocksUnsupportedError(OSError):
    """The file system has no locks."""


def lock_file(file: IO[Any], wait: bool = False) -> bool:
    """Takes the exclusive lock of an open file. The lock ends with the last process that has the file open.

    Args:
        file: An open file, such as a `.lock` file beside what the lock protects.
        wait: Wait until the lock is free.

    Returns:
        True if this process holds the lock now, False if another process holds it and `wait` is False.

    Raises:
        LocksUnsupportedError: The file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in LOCKS_UNSUPPORTED:
            raise LocksUnsupportedError(error.errno, error.strerror) from error
        raise
    return True
