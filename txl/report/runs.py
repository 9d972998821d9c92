"""What the files of run folders say: configuration, metrics and summary. Importing this does not import torch."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from txl.config.geometry import Geometry
from txl.errors import ConfigError
from txl.tracking.metrics_gaps import MetricsRecords

MetricsLine = dict[str, Any]  # one line of metrics.jsonl


@dataclass
class RunRecord:
    """What a run folder's files say about a run; the lines of metrics.jsonl by kind, in order."""

    folder: Path
    name: str
    seed: int | None
    train: list[MetricsLine] = field(default_factory=list)
    valid: list[MetricsLine] = field(default_factory=list)
    test: list[MetricsLine] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)  # empty while the run has not ended
    notes: list[str] = field(default_factory=list)  # what a crash left out of metrics.jsonl, a line each

    @property
    def metric(self) -> str:
        """`bpc` or `ppl`: the score that the run records beside its loss."""
        return "bpc" if any("bpc" in lines[-1] for lines in (self.train, self.valid, self.test) if lines) else "ppl"

    @property
    def steps(self) -> int:
        """The last step with a record."""
        return max((lines[-1]["step"] for lines in (self.train, self.valid) if lines), default=0)

    @property
    def best(self) -> MetricsLine | None:
        """The validation with the lowest loss."""
        return min((line for line in self.valid if line["loss"] is not None), key=lambda v: v["loss"], default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the whole training, or the median of the step lines if the run has not ended."""
        if "tokens_per_second" in self.summary:
            return float(self.summary["tokens_per_second"])
        return statistics.median(line["tokens_per_second"] for line in self.train) if self.train else None

    @property
    def group(self) -> str:
        """The run folder's path without the seed: equal for runs that differ in nothing else."""
        stem, separator, seed = self.folder.name.rpartition("-s")
        return str(self.folder.parent / stem) if separator and seed.isdigit() else str(self.folder)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. Lines of metrics.jsonl that are damaged or not finished are left out.

    Raises ConfigError if the folder holds no run.
    """
    folder = Path(folder).resolve()
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{folder} holds no metrics.jsonl; give run folders: runs/<name>/<hash>-s<seed>")
    config = yaml.safe_load(file.read_text()) if (file := folder / "config.yaml").exists() else {}
    summary = json.loads(file.read_text()) if (file := folder / "summary.json").exists() else {}
    run = RunRecord(folder, config.get("name", folder.name), config.get("seed"), summary=summary)
    kinds = {"train": run.train, "valid": run.valid, "test": run.test}
    records = MetricsRecords(path)
    for record in records:
        kinds.get(record["kind"], []).append(record)
    run.notes = records.notes()
    return run


def describe_geometry(line: MetricsLine) -> str:
    """The lengths and the batch size with which a validation or test was measured, as they are printed."""
    return f"{Geometry.from_record(line)} batch {line['batch_size']}"


def format_loss(run: RunRecord, line: MetricsLine) -> str:
    """Loss and score, such as `3.1354 (ppl 23.00)`, or `not finite` (metrics.jsonl then holds null)."""
    if line["loss"] is None:
        return "not finite"
    return f"{line['loss']:.4f} ({run.metric} {line[run.metric]:.{4 if run.metric == 'bpc' else 2}f})"


def find_runs_with_metrics(paths: list[Path]) -> list[Path]:
    """The given run folders; a folder that is none is replaced by all run folders below it."""
    found = []
    for path in paths:
        below = sorted(file.parent for file in path.glob("**/metrics.jsonl")) if path.is_dir() else []
        found += [path] if (path / "metrics.jsonl").exists() or not below else below
    return found
