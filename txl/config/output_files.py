"""Options that name a file to write. They are checked before any work, so that no result is lost at its end."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from txl.errors import ConfigError, refuse_unless
from txl.files import is_special_file, probe_folder

OUTPUT = "output"  # key in a field's metadata


@dataclass(frozen=True)
class OutputFile:
    """What happens to the file that an option names."""

    makes_folder: bool = False  # its folder is made if it is missing
    may_be_read: bool = False  # a file that exists is read, and not written
    may_be_stdout: bool = False  # `-` is standard output


def output_file(makes_folder: bool = False, may_be_read: bool = False, may_be_stdout: bool = False) -> Any:
    """A dataclass field with the default None that names a file to write; for the options see `OutputFile`."""
    return field(default=None, metadata={OUTPUT: OutputFile(makes_folder, may_be_read, may_be_stdout)})


def check_output_files(config: Any, prefix: str = "") -> None:
    """Finds out whether every file that a configuration names for writing can be written. Leaves nothing behind.

    Args:
        config: A configuration, or one of its sections.
        prefix: The section's own key with a dot, such as `benchmark.`; empty for a whole configuration.

    Raises:
        ConfigError: A file cannot be written, or two options name the same file.
    """
    keys: dict[Path, str] = {}
    for key, value, output in _output_files(config, prefix):
        path = Path(value)
        if output.may_be_read and path.is_file():
            continue
        check_output_file(key, path, output.makes_folder)
        other = keys.setdefault(path.absolute(), key)
        refuse_unless(
            other == key or is_special_file(path), key, value, f"is the file of {other}= too; name another one"
        )


def _output_files(config: Any, prefix: str) -> Iterator[tuple[str, str, OutputFile]]:
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            yield from _output_files(value, f"{prefix}{option.name}.")
        elif OUTPUT in option.metadata and value is not None:
            output = option.metadata[OUTPUT]
            if not (output.may_be_stdout and value == "-"):
                yield prefix + option.name, value, output


def check_output_file(key: str, path: Path, makes_folder: bool = False) -> None:
    """Raises ConfigError if a file cannot be written at `path`.

    Args:
        key: The option that names the file, for the message.
        path: The file. A device or a pipe is not tried.
        makes_folder: Its folder is made if it is missing.
    """
    if path.is_dir():
        raise ConfigError(f"{key}={path} is a folder; name a file in it")
    if is_special_file(path):
        return
    if not makes_folder and not path.absolute().parent.is_dir():
        raise ConfigError(f"{key}={path}: there is no folder {path.parent}; make it, or name another file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{key}={path} is write-protected; name another file")
    check_output_folder(key, path.absolute().parent, path)


def check_output_folder(key: str, folder: Path, shown: Path | None = None) -> None:
    """Raises ConfigError if files cannot be written in a folder, or if it does not exist and cannot be made.

    Args:
        key: The option that names the folder, for the message.
        folder: The folder. It is not made.
        shown: The option's value, for the message; None: the folder.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    value = f"{key}={shown or folder}"
    if not place.is_dir():
        raise ConfigError(f"{value}: {place} is a file, no folder; choose another place")
    try:
        probe_folder(place)
    except OSError as error:
        raise ConfigError(
            f"{value} cannot be written: {error.strerror}; free some room or change permissions there, or choose "
            "another place"
        ) from None


@contextlib.contextmanager
def writing_output(key: str, path: str | Path) -> Iterator[None]:
    """Turns an OSError inside, such as a disk that is full by now, into a ConfigError that names option and file."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be written: {error.strerror or error}; name another file") from None
