"""The files of one checkpoint: how they are written, checked and read.

    step_600/   model.pt optimizer.pt        written by rank 0
                rank_0.pt rank_1.pt ...      memories and random states, one file per rank
                run.json vocabulary.json     how to build the model again without the run folder
                state.json                   step, best loss, position in the text
                manifest.json                size and checksum of every other file; it is written last

Only tensors, numbers, text and containers are stored, so loading runs no code.

Shapes: L layers, B columns of the batch, M memory length, D model dim.
"""

import json
import os
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from txl.checkpoint.torch_file import load_torch_file
from txl.errors import ConfigError
from txl.files import sha256_of_file, write_json
from txl.system.hang_watch import note_progress

MANIFEST = "manifest.json"


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, or written for another model."""


# --------------------------------------------------------------------------- writing


class _ProgressNotingFile:
    """A file whose every write is progress: saving to a slow file system is no hang."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, data: bytes) -> int:
        note_progress()
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint_file(path: Path, value: Any) -> dict[str, Any]:
    """Write `value` to a .json or .pt file and flush it to the disk.

    Returns the file's entry in the manifest: its size in bytes and its checksum.
    """
    if path.suffix == ".json":
        write_json(path, value, indent=1, keep_non_finite=True)  # before the first validation the best loss is infinite
    else:
        with open(path, "wb") as file:
            torch.save(value, cast(IO[bytes], _ProgressNotingFile(file)))
            file.flush()
            os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def publish_checkpoint(partial: Path, final: Path) -> None:
    """Rename the folder `partial`, whose files are on the disk, to `final`: from then on the checkpoint exists."""
    sync_folder(partial)
    os.rename(partial, final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a power cut cannot undo a rename in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------- checking and reading


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check that every file of a checkpoint has the size and the checksum that the manifest names.

    Returns the manifest. Raises CheckpointError with the name of the first file that is missing or differs.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {folder}: unreadable {MANIFEST} ({error})") from None
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing")
        if path.stat().st_size != expected["bytes"] or sha256_of_file(path) != expected["sha256"]:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} differs from its entry in {MANIFEST}")
    return manifest


def is_intact(folder: Path) -> bool:
    """Whether `verify_checkpoint` accepts the folder."""
    try:
        verify_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def read_checkpoint_file(folder: Path, name: str, device: str | torch.device = "cpu") -> Any:
    """The content of one file of a checkpoint: a JSON document, or tensors (put on `device`) in containers.

    Raises CheckpointError if the checkpoint has no such file.
    """
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"checkpoint {folder} has no {name}")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return load_torch_file(path, device)


def read_memory_columns(folder: Path, columns: range) -> Tensor | None:
    """The memories of these columns of the global batch, [L, B, M, D]; None if the checkpoint has no memories.

    The columns may lie in the files of several ranks. Files are mapped, so that only the parts in use are read.
    """
    world_size = read_checkpoint_file(folder, MANIFEST)["world_size"]
    parts = []
    for rank in range(world_size):
        shard = load_torch_file(folder / f"rank_{rank}.pt", mapped=True)
        begin, end = shard["columns"]
        if shard["mems"] is None:
            return None
        low, high = max(begin, columns.start), min(end, columns.stop)
        if low < high:
            parts.append(shard["mems"][:, low - begin : high - begin])
    return torch.cat(parts, dim=1)
