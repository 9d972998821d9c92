"""Replace the only checkpoint of a run where the disk has no room for a second one.

The new checkpoint is written to the folder for temporary files first, and checkpoints/.elsewhere names it. Only then is
the old one deleted, and the new one copied to its place. So a whole checkpoint can be found at every instant.
"""

import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from txl.checkpoint.checkpoint_files import publish_checkpoint
from txl.checkpoint.find import ELSEWHERE, ELSEWHERE_PREFIX, read_elsewhere, remove_checkpoint, step_folders
from txl.files import sync_file, sync_folder, write_text_file

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def other_disk(checkpoints: Path) -> Path | None:
    """The folder for temporary files, or None if it is on the same disk as the checkpoints."""
    temporary = Path(tempfile.gettempdir())
    return None if temporary.stat().st_dev == checkpoints.stat().st_dev else temporary


def replace_by_way_of(
    temporary: Path, checkpoints: Path, name: str, spared: str, write: Callable[[Path], None]
) -> None:
    """Save a checkpoint in place of the earlier ones.

    Args:
        temporary: a folder on another disk.
        checkpoints: the run's checkpoints.
        name: the new checkpoint's, step_<step>.
        spared: the name of a checkpoint that is not deleted, the best one; may be empty.
        write: writes the files of the checkpoint into an empty folder, and flushes them to the disk.

    Raises:
        OSError: there is no room in one of the places. Whatever was whole before can still be found.
    """
    folder = Path(tempfile.mkdtemp(prefix=ELSEWHERE_PREFIX, dir=temporary)) / name
    try:
        folder.mkdir()
        write(folder)
        sync_folder(folder)
        sync_folder(folder.parent)
        write_text_file(checkpoints / ELSEWHERE, str(folder))
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    finish_replacement(checkpoints, spared)


def finish_replacement(checkpoints: Path, spared: str) -> None:
    """Copy the checkpoint that `.elsewhere` names to its place; the earlier ones but `spared` are deleted for it."""
    folder = read_elsewhere(checkpoints)
    assert folder is not None
    for path in step_folders(checkpoints):
        if path.name != spared:
            remove_checkpoint(path)
    partial = checkpoints / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, copy_function=_copy_to_disk)
    publish_checkpoint(partial, checkpoints / folder.name)
    forget_elsewhere(checkpoints)


def forget_elsewhere(checkpoints: Path) -> None:
    """Delete the checkpoint that `.elsewhere` names, if there is one: a newer one is in its place."""
    folder = read_elsewhere(checkpoints)
    if folder is not None:
        (checkpoints / ELSEWHERE).unlink()
        shutil.rmtree(folder.parent, ignore_errors=True)


def _copy_to_disk(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        shutil.copyfileobj(old, new)
        sync_file(new)
    shutil.copymode(source, target)
