"""The record of a run's file operations, as shim.c writes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Operation:
    """An operation that succeeded.

    Args:
        number: Its number, from 0. Operations that failed have numbers, too, but no record.
        name: create, open, truncate (to nothing, when opened), write, resize, fsync, rename, link, symlink, unlink,
            rmdir or mkdir.
        inode: Of the open file; 0 for operations on names.
        offset: Where `data` was written; the new length for resize.
        path: The file, or the first of two names; the text of a symbolic link.
        target: The second name.
        data: What was written.
    """

    number: int
    name: str
    inode: int
    offset: int
    path: str
    target: str
    data: bytes


def read_operations(log: Path) -> list[Operation]:
    """The operations in the order of their numbers."""
    return sorted(_parse(log.read_bytes()), key=lambda operation: operation.number)


def _parse(content: bytes) -> Iterator[Operation]:
    position = 0
    while position < len(content):
        end = content.index(b"\n", position)
        head, path, target = content[position:end].decode().split("\t")
        number, name, inode, offset, length = head.split(" ")
        position = end + 1 + int(length)
        yield Operation(int(number), name, int(inode), int(offset), path, target, content[end + 1 : position])
