"""What must be equal, bit by bit, between a run that was disturbed and one that was not."""

import json
from pathlib import Path
from typing import Any

import torch

from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns
from txl.checkpoint.find import read_document, read_pointer, step_of, verify_checkpoint

TIMED = {
    "time",
    "seconds",
    "ms_per_batch",
    "tokens_per_second",
    "train_seconds",
    "run_dir",
}  # differ between equal runs


def record_of(run_dir: Path, columns: int) -> dict[str, Any]:
    """All that a finished run computed: last and best checkpoint, metrics, summary. Raises if something is missing.

    `columns`: the global batch size.
    """
    checkpoints = run_dir / "checkpoints"
    last, best = _named(checkpoints / "last"), _named(checkpoints / "best")
    assert last is not None, "there is no last checkpoint"
    record: dict[str, Any] = {"last": step_of(last), "best": None if best is None else step_of(best)}
    for name, folder in (("last", last), ("best", best)):
        if folder is not None:
            verify_checkpoint(folder)
            record[f"{name} model"] = read_checkpoint_file(folder, "model.pt")
            record[f"{name} optimizer"] = read_checkpoint_file(folder, "optimizer.pt")
            record[f"{name} memories"] = read_memory_columns(folder, range(columns))
            record[f"{name} state"] = _untimed(read_document(folder, "state.json"))
            shards = sorted(folder.glob("rank_*.pt"))
            record[f"{name} ranks"] = [read_checkpoint_file(folder, path.name) for path in shards]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    record["metrics"] = [_untimed(json.loads(line)) for line in lines]
    record["summary"] = _untimed(json.loads((run_dir / "summary.json").read_text()))
    return record


def first_difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two nested containers of tensors differ; None if they are equal bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return None if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))[:5]}"
        return next(filter(None, (first_difference(a[key], b[key], f"{where}/{key}") for key in a)), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (first_difference(*pair, f"{where}/{i}") for i, pair in pairs)), None)
    same = a == b or (a != a and b != b)
    return None if same else f"{where}: {a!r} and {b!r}"


def _named(pointer: Path) -> Path | None:
    found = read_pointer(pointer)
    return None if found is None else found.resolve()


def _untimed(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _untimed(value) for key, value in values.items() if key not in TIMED}
    return values
