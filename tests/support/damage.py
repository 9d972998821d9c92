"""What can happen to a file: every kind of damage, by name."""

import os
from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path) -> None:
    """Change one bit in the middle; size and modification time stay."""
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1 << 2
    _overwrite(path, content)


def zero_region(path: Path) -> None:
    """Set the second half to zero, as a lost page of a file system; size and modification time stay."""
    content = path.read_bytes()
    _overwrite(path, content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def _overwrite(path: Path, content: bytes | bytearray) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Damage that removes the file and makes something else of its name."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_bit,
    "zeroed": zero_region,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "removed": lambda path: path.unlink(),
    "not_utf8": lambda path: path.write_bytes(b"\xff\xfe\xe9" * 20),
    "null": lambda path: path.write_bytes(b"null"),
    "other_json": lambda path: path.write_bytes(b'{"kind": "word", "words": 3, "splits": {"train": []}}'),
    "nested": lambda path: path.write_bytes(b"[" * 200_000),
    "folder": replace_by(lambda path: (path / "inside").mkdir(parents=True)),
    "dangling_link": replace_by(lambda path: path.symlink_to(path.with_name("nowhere"))),
    "fifo": replace_by(os.mkfifo),
}
