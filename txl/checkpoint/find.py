"""Find and check checkpoints. Importing this does not import torch.

    checkpoints/step_600/             one checkpoint (its files: checkpoint_files.py)
    checkpoints/best, last            name step folders: links, or text files if the file system has no links
    checkpoints/set_aside/            checkpoints of steps that the run went back before, and damaged ones
    checkpoints/.elsewhere            names a checkpoint on another disk while it replaces the only one (little_room.py)
    checkpoints/.step_600.replaced/   the checkpoint of a step while it is saved a second time

Only folders called step_<digits> are checkpoints of the run; whatever else lies beside them is left alone. Nothing
depends on best and last: without them the newest checkpoint says which one is the best.
"""

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from txl.errors import ConfigError, quoted
from txl.files import MOST_JSON_BYTES, parse_json, read_text_file, sha256_of_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SET_ASIDE = "set_aside"
ELSEWHERE = ".elsewhere"
ELSEWHERE_PREFIX = "txl-checkpoint-"  # of the folder that holds it: only such a folder is ever deleted
POINTER_READS = 3  # of a link that moves while it is followed

_STEP = re.compile(r"step_(0|[1-9][0-9]{0,17})")
_REPLACED = re.compile(r"\.step_(0|[1-9][0-9]{0,17})\.replaced")
_ASIDE = re.compile(r"step_(0|[1-9][0-9]{0,17})(?:\.[0-9]+)?")
_RANK_FILE = re.compile(r"rank_[0-9]+\.pt")
_FILE_NAME = re.compile(r"\w[\w.-]*")


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, or written for another model."""


# --------------------------------------------------------------------------- one checkpoint


def read_document(folder: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file of a checkpoint. Raises CheckpointError if it is no JSON object."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {name}; use another checkpoint")
    try:
        value = parse_json(read_text_file(path, MOST_JSON_BYTES))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:100]
        raise CheckpointError(f"checkpoint {folder} is damaged: unreadable {name} ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: {name} is no JSON object")
    return value


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check that every file of a checkpoint is as the manifest says, and that those of all ranks are there.

    Returns the manifest. Raises CheckpointError with the name of the first file that is missing or differs.
    """
    manifest = read_document(folder, MANIFEST)
    files = manifest.get("files")
    described = isinstance(files, dict) and all(
        isinstance(name, str) and _FILE_NAME.fullmatch(name) and isinstance(entry, dict)
        for name, entry in files.items()
    )
    if not isinstance(files, dict) or not described:
        raise CheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} lists no files")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing")
        try:
            same = path.stat().st_size == entry.get("bytes") and sha256_of_file(path) == entry.get("sha256")
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {name}: {error.strerror}") from None
        if not same:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} differs from its entry in {MANIFEST}")
    ranks, named = sum(_RANK_FILE.fullmatch(name) is not None for name in files), manifest.get("world_size")
    if type(named) is not int or named != ranks:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {MANIFEST} has the files of {ranks} processes, and its world_size is "
            f"{quoted(str(named), 40)}"
        )
    return manifest


def is_intact(folder: Path) -> bool:
    """Whether `verify_checkpoint` accepts the folder."""
    try:
        verify_checkpoint(folder)
    except CheckpointError:
        return False
    return True


# --------------------------------------------------------------------------- the checkpoints of a run


def step_of(folder: Path) -> int:
    """The step of a folder that `step_folders` or `newest_intact` found."""
    match = re.search(r"step_([0-9]+)", folder.name)
    assert match is not None, folder
    return int(match[1])


def step_folders(checkpoints: Path) -> list[Path]:
    """The step folders in a checkpoints/ folder that are finished, newest first. They may be damaged."""
    return _matching(checkpoints, _STEP)


def newest_intact(checkpoints: Path) -> Path | None:
    """The newest intact checkpoint in a checkpoints/ folder, or None. Logs a warning for every damaged one.

    A checkpoint of the run itself comes before those that were set aside. The latter are used only if nothing else
    is left.
    """
    elsewhere = read_elsewhere(checkpoints)
    own = [*step_folders(checkpoints), *_matching(checkpoints, _REPLACED), *([elsewhere] if elsewhere else [])]
    own.sort(key=step_of, reverse=True)  # stable: the replaced one of a step comes after the other
    for folder in [*own, *_matching(checkpoints / SET_ASIDE, _ASIDE)]:
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            log.warning("%s; trying the checkpoint before it", error)
            continue
        if folder.parent.name == SET_ASIDE:
            log.warning("%s was set aside; no other checkpoint is intact", folder)
        return folder
    return None


def best_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; without validations the newest one; None if there is none."""
    if found := read_pointer(checkpoints / "best"):
        return found
    finished = step_folders(checkpoints)
    for newest in finished[:1]:
        try:
            best = checkpoints / f"step_{read_document(newest, 'state.json').get('best_step')}"
        except CheckpointError:
            break
        if best in finished:
            return best
    return finished[0] if finished else read_pointer(checkpoints / "last") or newest_intact(checkpoints)


def read_pointer(path: Path) -> Path | None:
    """The finished checkpoint that `path` is, links to, or names as a text file; None if there is none.

    While a step is saved a second time, that is for an instant the checkpoint that is replaced. A training moves its
    links before it removes what they named: so a name that has changed meanwhile is read again.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for _ in range(POINTER_READS):
            named = _named_by(path)
            places = (named, named.parent / f".{named.name}.replaced")
            found = next((place for place in places if (place / MANIFEST).is_file()), None)
            if found is not None or _named_by(path) == named:
                return found
    return None


def _named_by(path: Path) -> Path:
    """What a link links to, or a text file names; every other path names itself."""
    if path.is_symlink():
        return path.parent / os.readlink(path)
    if path.is_file() and path.stat().st_size < 100 and _STEP.fullmatch(name := path.read_text().strip()):
        return path.parent / name
    return path


def read_elsewhere(checkpoints: Path) -> Path | None:
    """The finished checkpoint on another disk that is about to replace the run's only one, or None."""
    with contextlib.suppress(OSError, ValueError):
        folder = Path(read_text_file(checkpoints / ELSEWHERE).strip())
        ours = folder.parent.name.startswith(ELSEWHERE_PREFIX)
        if ours and _STEP.fullmatch(folder.name) and (folder / MANIFEST).is_file():
            return folder
    return None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half-deleted one is not taken for a damaged one."""
    if path.is_symlink():
        path.unlink()
        return
    removed = path.with_name(f".{path.name}.removed")
    with contextlib.suppress(OSError):
        os.rename(path, removed)
    shutil.rmtree(removed, ignore_errors=True)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The finished checkpoints in a folder whose names match, those of later steps first."""
    try:
        found = [path for path in folder.iterdir() if pattern.fullmatch(path.name) and (path / MANIFEST).is_file()]
    except OSError:
        return []
    return sorted(found, key=step_of, reverse=True)
