"""Files of records that a resumed run continues: drop the records that the run will write again."""

import os
from collections.abc import Callable
from pathlib import Path

from txl.files import sync_file, sync_folder


def drop_later_lines(path: Path, step: int, is_kept: Callable[[bytes, int], bool]) -> None:
    """Rewrite a file, if it exists, in one step without the lines for which `is_kept(line, step)` is false."""
    if not path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    with open(path, "rb") as old, open(partial, "wb") as new:
        new.writelines(line for line in old if is_kept(line, step))
        sync_file(new)
    os.replace(partial, path)
    sync_folder(path.parent)
