"""What came out: the loss curve of a run, and a table of runs with mean and standard deviation over seeds.

    python -m txl.report RUN_FOLDER...

Everything is read from the run folders; torch is not needed.
"""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from txl.config.geometry import Geometry
from txl.errors import ConfigError


@dataclass
class Run:
    """A run folder as its own files tell it; lines of metrics.jsonl by kind, in order."""

    folder: Path
    name: str
    seed: int | None
    train: list[dict] = field(default_factory=list)
    valid: list[dict] = field(default_factory=list)
    test: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return "bpc" if any("bpc" in lines[-1] for lines in (self.train, self.valid, self.test) if lines) else "ppl"

    @property
    def steps(self) -> int:
        return max((lines[-1]["step"] for lines in (self.train, self.valid) if lines), default=0)

    @property
    def best(self) -> dict | None:
        """The validation with the lowest loss."""
        return min((line for line in self.valid if line["loss"] is not None), key=lambda v: v["loss"], default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the whole training; of the step lines' median where it has not ended."""
        if "tokens_per_second" in self.summary:
            return self.summary["tokens_per_second"]
        return statistics.median(line["tokens_per_second"] for line in self.train) if self.train else None

    @property
    def group(self) -> str:
        """The same for runs that differ in the seed alone: name and configuration hash."""
        stem, separator, seed = self.folder.name.rpartition("-s")
        return str(self.folder.parent / stem) if separator and seed.isdigit() else str(self.folder)


def read_run(folder: Path) -> Run:
    """ConfigError where the folder holds no run. A torn last line, of a run that is being written, is left out."""
    folder = Path(folder).resolve()
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{folder} holds no metrics.jsonl; give run folders: runs/<name>/<hash>-s<seed>")
    config = yaml.safe_load(file.read_text()) if (file := folder / "config.yaml").exists() else {}
    summary = json.loads(file.read_text()) if (file := folder / "summary.json").exists() else {}
    run = Run(folder, config.get("name", folder.name), config.get("seed"), summary=summary)
    kinds = {"train": run.train, "valid": run.valid, "test": run.test}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                values = json.loads(line)
                kinds.get(values["kind"], []).append(values)
    return run


def geometry_of(line: dict) -> str:
    """The evaluation geometry of a validation or test line, as it is printed beside every perplexity."""
    names = ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")
    return f"{Geometry(**{name: line[name] for name in names})} batch {line['batch_size']}"


def score(run: Run, line: dict) -> str:
    """`3.1354 (ppl 23.00)`; metrics.jsonl holds null for what is not finite."""
    if line["loss"] is None:
        return "not finite"
    return f"{line['loss']:.4f} ({run.metric} {line[run.metric]:.{4 if run.metric == 'bpc' else 2}f})"


def run_folders(paths: list[Path]) -> list[Path]:
    """The given run folders; a folder of runs stands for all below it."""
    found = []
    for path in paths:
        below = sorted(file.parent for file in path.glob("**/metrics.jsonl")) if path.is_dir() else []
        found += [path] if (path / "metrics.jsonl").exists() or not below else below
    return found
