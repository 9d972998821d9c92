"""The files of one checkpoint: how they are written and read.

    step_600/   model.pt optimizer.pt        written by rank 0
                rank_0.pt rank_1.pt ...      memories and random states, one file per rank
                run.json vocabulary.json     how to build the model again without the run folder
                state.json                   step, best loss, position in the text
                manifest.json                size and checksum of every other file; it is written last

Only tensors, numbers, text and containers are stored, so loading runs no code.

Shapes: L layers, B columns of the batch, M memory length, D model dim.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from txl.checkpoint.find import MANIFEST, CheckpointError, read_document, verify_checkpoint
from txl.checkpoint.pickle_functions import shown_text
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.torch_file import load_torch_file
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError, disk_fault
from txl.files import sha256_of_file, sync_file, sync_folder, write_json

READ_ATTEMPTS = 20  # a run that is training may delete a checkpoint while it is read

Result = TypeVar("Result")


# --------------------------------------------------------------------------- writing


def write_checkpoint_file(path: Path, value: Any) -> dict[str, Any]:
    """Write `value` to a .json or .pt file and flush it to the disk.

    Returns the file's entry in the manifest: its size in bytes and its checksum. Raises OSError if it cannot be
    written, for instance because the disk is full.
    """
    if path.suffix == ".json":
        write_json(path, value, indent=1, keep_non_finite=True)  # before the first validation the best loss is infinite
    else:
        with open(path, "wb") as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:  # torch's own, which hides that of the disk
                number = error.__context__.errno if isinstance(error.__context__, OSError) else errno.EIO
                raise OSError(number, disk_fault(error) or str(error).partition("\n")[0]) from error
            sync_file(file)
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Put a file of a checkpoint into another checkpoint. Such files are never changed, so two can share them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def publish_checkpoint(partial: Path, final: Path) -> None:
    """Rename the folder `partial`, whose files are on the disk, to `final`: from then on the checkpoint exists."""
    sync_folder(partial)
    os.rename(partial, final)
    sync_folder(final.parent)


# --------------------------------------------------------------------------- reading


@contextlib.contextmanager
def broken_content_reported(message: Callable[[str], str]) -> Iterator[None]:
    """Errors that broken content causes inside become CheckpointError(message(reason)), of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(message(shown_text(reason, 120))) from None


def damage_reported(folder: Path) -> contextlib.AbstractContextManager[None]:
    """What goes wrong inside becomes a CheckpointError of one line: the checkpoint's content is not as it should be."""
    return broken_content_reported(lambda reason: f"checkpoint {folder} is damaged ({reason}); use another checkpoint")


@dataclass(frozen=True)
class ModelCheckpoint:
    """What is needed of a checkpoint to use its model."""

    folder: Path
    run: dict[str, Any]  # the run's configuration: its sections model, data, train and evaluation
    vocab: Vocabulary
    weights: dict[str, Tensor]  # by name
    data_fingerprint: str | None  # of the data set that it was trained on; None: unknown, as of an import


def read_model_checkpoint(path: str | Path, key: str = "checkpoint") -> ModelCheckpoint:
    """Find, check and read a checkpoint. Arguments and errors are those of `use_checkpoint`."""
    return use_checkpoint(path, key, _read_model_checkpoint)


def use_checkpoint(path: str | Path, key: str, read: Callable[[Path], Result]) -> Result:
    """Find and verify a checkpoint, and read from it.

    If a run that is training deletes it meanwhile, the checkpoint that `path` then means is read instead.

    Args:
        path: a run folder, or a checkpoint.
        key: the option that the path was given to; error messages name it.
        read: reads from the checkpoint's folder.

    Returns:
        What `read` returns.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    for _ in range(READ_ATTEMPTS):
        folder = resolve_checkpoint(path, key)
        try:
            verify_checkpoint(folder)
            return read(folder)
        except ConfigError as error:
            if (folder / MANIFEST).is_file():
                raise CheckpointError(f"{key}={path}: {error}") from None
    raise CheckpointError(f"{key}={path} is being deleted by the run that wrote it; name its run folder, or try again")


def _read_model_checkpoint(folder: Path) -> ModelCheckpoint:
    run = read_document(folder, "run.json")
    for section in ("model", "data", "train", "evaluation"):
        if not isinstance(run.get(section), dict):
            raise CheckpointError(f"checkpoint {folder} is damaged: run.json has no section {section}")
    document = read_document(folder, "vocabulary.json")
    with damage_reported(folder):
        vocab = vocabulary_from_dict(document)
    weights = read_checkpoint_file(folder, "model.pt")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"checkpoint {folder} is damaged: model.pt holds no tensors by name")
    has_state = "state.json" in read_document(folder, MANIFEST)["files"]  # an import has none
    data = read_document(folder, "state.json").get("data") if has_state else None
    return ModelCheckpoint(folder, run, vocab, weights, data)


def read_checkpoint_file(folder: Path, name: str, device: str | torch.device = "cpu") -> Any:
    """The content of one file of a checkpoint: a JSON object, or tensors (put on `device`) in containers.

    Raises CheckpointError if the checkpoint has no such file, ConfigError if the file is damaged.
    """
    path = folder / name
    if path.suffix == ".json":
        return read_document(folder, name)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {name}; use another checkpoint")
    return load_torch_file(path, device)


def read_memory_columns(folder: Path, columns: range) -> Tensor | None:
    """The memories of these columns of the global batch, [L, B, M, D]; None if the checkpoint has no memories.

    The columns may lie in the files of several ranks. Files are mapped, so that only the parts in use are read.
    """
    world_size = read_document(folder, MANIFEST)["world_size"]
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
