"""Which checkpoint a path means: a run folder, its checkpoints/ folder, or one checkpoint."""

from pathlib import Path

from txl.checkpoint.checkpoint_files import MANIFEST, CheckpointError


def resolve_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint folder that `path` means.

    A run folder (or its checkpoints/ folder) means the run's best checkpoint, or its last one if key="resume".

    Args:
        path: a run folder, a checkpoints/ folder, or a checkpoint folder.
        key: the option that the path was given to; error messages name it.

    Raises:
        CheckpointError: the path does not exist or holds no finished checkpoint.
    """
    path = Path(path)
    links = ("last", "best") if key == "resume" else ("best", "last")
    for candidate in (path, *(path / folder / link for link in links for folder in ("", "checkpoints"))):
        if (candidate / MANIFEST).exists():
            return candidate.resolve()
    if not path.exists():
        raise CheckpointError(f"{key}={path} does not exist; name a run folder or one of its checkpoints")
    other_format = path.is_file() or (path / "pytorch_model.bin").exists()
    remedy = f"; to convert another program's model: txl import {path} FOLDER"
    remedy = remedy if other_format else ""
    raise CheckpointError(f"{key}={path} holds no {MANIFEST}: not a checkpoint, or one that was never finished{remedy}")
