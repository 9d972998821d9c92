"""Files of records that a resumed run continues: drop the records that the run will write again."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from txl.files import NEW_FILE, open_regular_file, read_lines, sync_file, sync_folder, truncate_file

BLOCK_BYTES = 1 << 16  # read at a time, from the end of the file on

IsKept = Callable[[bytes, int], bool]


def drop_later_lines(path: Path, step: int, is_kept: IsKept) -> None:
    """Remove the lines of a file, if it exists, for which `is_kept(line, step)` is false, in one step.

    The lines are in the order of their steps, so that only the end of the file is read: the lines before a block that
    is kept as a whole are kept. A file of a million lines takes as long as one of a thousand.
    """
    if not path.exists():
        return
    with open(path, "r+b") as file:
        begin = _start_of_dropped_end(file, step, is_kept)
        file.seek(begin)
        end = list(itertools.chain.from_iterable(read_lines(file)))
        kept = [line for line in end if is_kept(line, step)]
        if kept == end:
            return
        if kept == end[: len(kept)]:
            truncate_file(file, begin + sum(map(len, kept)))
            sync_file(file)
            return
        partial = path.with_name(path.name + ".partial")
        with open(open_regular_file(partial, NEW_FILE), "wb") as new:
            file.seek(0)
            new.write(file.read(begin))
            new.writelines(kept)
            sync_file(new)
    os.replace(partial, path)
    sync_folder(path.parent)


def _start_of_dropped_end(file: BinaryIO, step: int, is_kept: IsKept) -> int:
    """The start of a line before which all lines are kept, found from the end of the file on."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        file.seek(start)
        block = file.read(position - start)
        if start > 0:
            first = block.find(b"\n") + 1  # of the first line that begins in the block
            if first == 0 or first == len(block):  # a line that is longer than a block
                position = start
                continue
            start, block = start + first, block[first:]
        if all(is_kept(line, step) for line in block.splitlines(keepends=True)):
            return start
        position = start
    return 0
