"""What a disk may hold after the power was cut: all that was flushed, and of the rest as little, or as much, as can be.

A file's content is on the disk when the file was fsynced; that a name exists, or was renamed or deleted, when its
folder was. POSIX promises no more. Disks often keep more, in any order, so there are several variants:

    nothing      only what was flushed
    names        renames and deletions have reached the disk, but no content that was not flushed: files are empty
    random       of every file a part of what was not flushed, and of every folder the changes up to some instant
    torn         as `random`, and unflushed blocks hold zeros
"""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tools.chaos.operations import Operation

VARIANTS = ("nothing", "names", "random", "torn")


@dataclass
class File:
    """A file, a folder (`entries`) or a symbolic link (`text`)."""

    content: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""
    text: str | None = None
    entries: "dict[str, File] | None" = None
    changes: "list[tuple[str, File | None]]" = field(default_factory=list)  # of names, not flushed yet
    durable: "dict[str, File]" = field(default_factory=dict)  # names that are on the disk


class Disk:
    """The folder `root` and all below it, in memory, while operations are applied."""

    def __init__(self, root: Path):
        self.root = PurePosixPath(root)
        self.top = File(entries={})  # holds the folder itself, whose name is on the disk when it was made
        self.inodes: dict[int, File] = {}

    def apply(self, operation: Operation) -> None:
        """Do what an operation did."""
        name = operation.name
        if name in ("create", "open", "truncate"):
            self._open(operation)
        elif name in ("write", "resize"):
            self._write(operation)
        elif name == "fsync":
            self._flush(operation)
        elif name == "mkdir":
            self._set(operation.path, File(entries={}))
        elif name == "symlink":
            self._set(operation.target, File(text=operation.path))
        elif name in ("unlink", "rmdir"):
            self._set(operation.path, None)
        elif name == "link":
            self._set(operation.target, self._get(operation.path))
        elif name == "rename":
            moved = self._get(operation.path)
            self._set(operation.path, None)
            self._set(operation.target, moved)

    def _open(self, operation: Operation) -> None:
        file = self._get(operation.path)
        if operation.name == "create" or file is None:
            file = File()
            self._set(operation.path, file)
        elif operation.name == "truncate":
            file.content.clear()
        self.inodes[operation.inode] = file

    def _write(self, operation: Operation) -> None:
        file = self.inodes.get(operation.inode) or self._get(operation.path)
        if file is None:
            return  # deleted
        if operation.name == "resize":
            del file.content[operation.offset :]
            return
        missing = operation.offset - len(file.content)
        if missing > 0:
            file.content.extend(bytes(missing))
        file.content[operation.offset : operation.offset + len(operation.data)] = operation.data

    def _flush(self, operation: Operation) -> None:
        file = self._get(operation.path)
        if file is not None and file.entries is not None:
            file.durable, file.changes = dict(file.entries), []
        elif found := self.inodes.get(operation.inode):
            found.flushed = bytes(found.content)

    def _folder(self, path: PurePosixPath) -> File | None:
        file: File | None = self.top
        for part in path.relative_to(self.root.parent).parts:
            file = None if file is None or file.entries is None else file.entries.get(part)
        return file

    def _get(self, path: str) -> File | None:
        try:
            return self._folder(PurePosixPath(path))
        except ValueError:
            return None  # outside

    def _set(self, path: str, file: File | None) -> None:
        pure = PurePosixPath(path)
        try:
            folder = self._folder(pure.parent)
        except ValueError:
            return
        if folder is None or folder.entries is None:
            return
        folder.changes.append((pure.name, file))
        if file is None:
            folder.entries.pop(pure.name, None)
        else:
            folder.entries[pure.name] = file

    # ------------------------------------------------------------------ after the cut

    def write_after_cut(self, variant: str, rng: random.Random) -> None:
        """Write to the root's place what the disk holds after the power was cut."""
        self.top.durable = dict(self.top.entries or {})  # the run folder's own name: its parent is not ours to flush
        _write_folder(self.top, Path(self.root.parent), variant, rng)


def _write_folder(folder: File, path: Path, variant: str, rng: random.Random) -> None:
    names = dict(folder.durable)
    kept = {"nothing": 0, "names": len(folder.changes)}.get(variant, rng.randint(0, len(folder.changes)))
    for name, file in folder.changes[:kept]:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file
    for name, file in names.items():
        target = path / name
        if file.text is not None:
            os.symlink(file.text, target)
        elif file.entries is not None:
            target.mkdir(exist_ok=True)
            _write_folder(file, target, variant, rng)
        else:
            target.write_bytes(_content_after_cut(file, variant, rng))


def _content_after_cut(file: File, variant: str, rng: random.Random) -> bytes:
    if bytes(file.content) == file.flushed or variant in ("nothing", "names"):
        return file.flushed
    if not file.content.startswith(file.flushed):  # rewritten in place: the old content or a part of the new one
        return rng.choice([file.flushed, bytes(file.content[: rng.randint(0, len(file.content))])])
    length = rng.randint(len(file.flushed), len(file.content))
    added = bytes(file.content[len(file.flushed) : length])
    return file.flushed + (bytes(len(added)) if variant == "torn" and rng.random() < 0.5 else added)


def disk_after(operations: Iterable[Operation], root: Path, before: int) -> Disk:
    """The disk when the power is cut before operation number `before`."""
    disk = Disk(root)
    for operation in operations:
        if operation.number < before:
            disk.apply(operation)
    return disk
