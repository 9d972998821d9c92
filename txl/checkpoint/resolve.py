"""Which checkpoint a path means: a run folder, one of its checkpoints, a folder with one run, or `latest`."""

import contextlib
from pathlib import Path

from txl.checkpoint.find import (
    MANIFEST,
    CheckpointError,
    best_checkpoint,
    newest_intact,
    read_pointer,
    step_folders,
)
from txl.config.differences import name_points, read_flat_config
from txl.errors import ConfigError

RUNS = Path("runs")  # where `latest` looks
DEPTH = 3  # levels of folders below which runs are looked for
LISTED, NAME_LENGTH = 4, 40  # runs that an error message names; characters of what each has differently


def resolve_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint folder that `path` means.

    A run folder (or its checkpoints/ folder) means the run's best checkpoint, or its newest intact one if key="resume".
    So does a folder with a single run below it. `RUN/best`, `RUN/last` and `RUN/step_100` mean RUN/checkpoints/best and
    so on. `latest` means the run below runs/ that has saved last.

    Args:
        path: a run folder, a checkpoint, a folder with one run below it, or `latest`.
        key: the option that the path was given to; error messages name it.

    Raises:
        CheckpointError: the path does not exist, holds no finished checkpoint, or holds several runs.
    """
    path = Path(path).expanduser()
    found = _of_run(path, key) or _of_run(path.parent / "checkpoints" / path.name, key)
    if found is None and str(path) == "latest":
        runs = _runs_below(RUNS)
        if not runs:
            raise CheckpointError(f"{key}=latest: there is no run with a checkpoint below {RUNS}/; name a run folder")
        found = _of_run(max(runs, key=_saved), key)
    if found is None and path.is_dir():
        runs = _runs_below(path)
        if len(runs) > 1:
            raise CheckpointError(f"{key}={path} holds {len(runs)} runs: {_described(runs, path)}; name one of them")
        found = _of_run(runs[0], key) if runs else None
    if found is not None:
        return found
    if not path.exists():
        raise CheckpointError(f"{key}={path} does not exist; name a run folder or one of its checkpoints")
    if (path / "config.yaml").exists():
        raise CheckpointError(f"{key}={path} has no checkpoint: the run ended, or was stopped, before it saved one")
    other_format = path.is_file() or (path / "pytorch_model.bin").exists()
    remedy = f"; to convert another program's model: txl import {path} FOLDER"
    remedy = remedy if other_format else ""
    raise CheckpointError(f"{key}={path} holds no {MANIFEST}: not a checkpoint, or one that was never finished{remedy}")


def _of_run(path: Path, key: str) -> Path | None:
    """The checkpoint that a run folder, a checkpoints/ folder or a checkpoint means."""
    found = read_pointer(path)
    find = newest_intact if key == "resume" else best_checkpoint
    for folder in (path, path / "checkpoints"):
        found = found or find(folder)
    return found.resolve() if found else None


def _runs_below(folder: Path) -> list[Path]:
    patterns = ("*/" * depth + "checkpoints" for depth in range(1, DEPTH + 1))
    found = (path.parent for pattern in patterns for path in folder.glob(pattern))
    return sorted(run for run in found if step_folders(run / "checkpoints"))


def _saved(run: Path) -> float:
    """When the run saved last."""
    return max((folder / MANIFEST).stat().st_mtime for folder in step_folders(run / "checkpoints"))


def _described(runs: list[Path], folder: Path) -> str:
    """The first runs below a folder, each with the beginning of what it has differently."""
    names = [""] * len(runs)
    with contextlib.suppress(ConfigError):  # without config.yaml: by folder alone
        names = name_points([read_flat_config(run) for run in runs])
    shown = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..." for name in names]
    listed = [f"{run.relative_to(folder)} ({name})".removesuffix(" ()") for run, name in zip(runs, shown, strict=True)]
    return ", ".join(listed[:LISTED]) + (", ..." if len(listed) > LISTED else "")
