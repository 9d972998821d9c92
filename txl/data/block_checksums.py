"""A checksum (CRC-32) for every block of a token file, so that damage on disk is found before the ids are used.

A CRC-32 finds every change of up to 32 neighbouring bits, and all but one of 4 * 10^9 other changes.
"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from txl.system.hang_watch import note_progress

BLOCK_BYTES = 1 << 20
THREADS = min(4, os.cpu_count() or 1)  # zlib and reading run outside of Python's lock
GROUP = 64  # blocks that are checked between two notes of progress


class BlockChecksums:
    """The checksums of bytes that arrive in parts of any size; `values` has one integer per block so far."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self._room = 0  # bytes that the last block still lacks

    def update(self, data: bytes) -> None:
        """Add bytes."""
        view = memoryview(data)
        while len(view):
            if not self._room:
                self.values.append(0)
                self._room = BLOCK_BYTES
            part = view[: self._room]
            self.values[-1] = zlib.crc32(part, self.values[-1])
            self._room -= len(part)
            view = view[len(part) :]


def first_damaged_byte(path: Path, offset: int, length: int, expected: list[int]) -> int | None:
    """Compare a part of a file with the checksums of its blocks.

    Args:
        path: The file.
        offset: Where the part begins, in bytes.
        length: Its length in bytes.
        expected: The checksum of each block.

    Returns:
        Where in the file the first block begins that differs or cannot be read; None: there is none.
    """
    starts = range(offset, offset + length, BLOCK_BYTES)
    if len(starts) != len(expected):
        return offset
    with open(path, "rb") as file:
        found = _checksums(file.fileno(), starts, offset + length)
        pairs = zip(starts, found, expected, strict=True)
        return next((start for start, value, right in pairs if value != right), None)


def _checksums(file: int, starts: range, end: int) -> Iterator[int | None]:
    """The checksum of the block at each start; None for one that cannot be read."""

    def checksum(start: int) -> int | None:
        try:
            return zlib.crc32(os.pread(file, min(BLOCK_BYTES, end - start), start))
        except OSError:
            return None

    with ThreadPoolExecutor(THREADS) as threads:
        for first in range(0, len(starts), GROUP):
            yield from threads.map(checksum, starts[first : first + GROUP])
            note_progress()
