"""What the files of run folders say: configuration, metrics and summary. Importing this does not import torch."""

import functools
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txl.config.differences import read_flat_config
from txl.config.geometry import Geometry
from txl.errors import ConfigError
from txl.files import read_json
from txl.report.run_state import RunState, find_run_state
from txl.tracking.metrics_file import Metrics, MetricsLine, read_metrics

DEPTH = 3  # levels of folders below which run folders are looked for
METRICS = "metrics.jsonl"
TRIAL_FOLDER = re.compile(r"trial_(\d+)")  # of `txl search`


@dataclass
class RunRecord:
    """What a run folder's files say about a run."""

    folder: Path
    config: dict[str, Any]  # dotted keys; empty if the folder has no config.yaml
    metrics: Metrics = field(default_factory=Metrics)
    summary: dict[str, Any] = field(default_factory=dict)  # empty while the run has not ended
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def state(self) -> RunState:
        """What became of the run."""
        return find_run_state(self.folder)

    @property
    def name(self) -> str:
        """The run's name; without a configuration, its folder's."""
        return str(self.config.get("name", self.folder.name))

    @property
    def seed(self) -> int | None:
        """The seed, or None if it is not known."""
        return self.config.get("seed")

    @property
    def trial(self) -> int | None:
        """The number of this trial of a search; None for a run that is none."""
        found = TRIAL_FOLDER.fullmatch(self.folder.name)
        return int(found[1]) if found and (self.folder.parent / "study.log").exists() else None

    @property
    def metric(self) -> str:
        """`bpc` or `ppl`: the score that the run records beside its loss, or will record."""
        last = [line for line in (self.metrics.train.last, *self.metrics.valid[-1:], *self.metrics.test[-1:]) if line]
        if not last:
            return "bpc" if self.config.get("data.metric") == "bpc" else "ppl"
        return "bpc" if any("bpc" in line for line in last) else "ppl"

    @property
    def steps(self) -> int:
        """The last step with a record."""
        return max((*self.metrics.train.step[-1:], *(line["step"] for line in self.metrics.valid[-1:])), default=0)

    @property
    def max_step(self) -> int | None:
        """The last step of the whole run, as configured."""
        return self.config.get("train.max_step")

    @property
    def tokens(self) -> int | None:
        """The tokens that it was trained on so far."""
        last = self.metrics.train.last
        return self.summary.get("tokens_seen") or (last.get("tokens_seen") if last else None)

    @property
    def seconds(self) -> float | None:
        """The time of training; of a run that has not ended, from its first line to its last."""
        if "train_seconds" in self.summary:
            return float(self.summary["train_seconds"])
        times = [time for time in self.metrics.train.time if time is not None]
        return times[-1] - times[0] if len(times) > 1 else None

    @property
    def best(self) -> MetricsLine | None:
        """The validation with the lowest loss."""
        finite = (line for line in self.metrics.valid if line["loss"] is not None)
        return min(finite, key=lambda line: float(line["loss"]), default=None)

    @property
    def test(self) -> MetricsLine | None:
        """The result on the test split, if there is one."""
        return self.metrics.test[-1] if self.metrics.test else None

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the whole training, or the median of the step lines if the run has not ended."""
        if self.summary.get("tokens_per_second") is not None:
            return float(self.summary["tokens_per_second"])
        speeds = [speed for speed in self.metrics.train.speed if speed is not None]
        return statistics.median(speeds) if speeds else None

    @property
    def notes(self) -> list[str]:
        """What a crash left out of metrics.jsonl, a line each."""
        return self.metrics.missing(self.folder / METRICS)

    @property
    def is_complete(self) -> bool:
        """Whether its numbers may be averaged with those of other seeds: it finished, and they are finite."""
        lines = [line for line in (*self.metrics.valid[-1:], self.test) if line]
        return self.state.word == "finished" and all(line["loss"] is not None for line in lines)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. A run that has not begun yet has no metrics.

    Raises:
        ConfigError: The folder holds no run, or its configuration cannot be read.
    """
    folder = Path(folder).resolve()
    if not is_run(folder):
        raise ConfigError(f"{folder} holds no metrics.jsonl and no config.yaml; give run folders: runs/<name>/...")
    config = read_settings(folder)
    try:
        metrics = read_metrics(folder / METRICS) if (folder / METRICS).exists() else Metrics()
    except OSError as error:
        raise ConfigError(f"{folder / METRICS} cannot be read: {error.strerror}; leave the run out") from None
    documents = (read_json(folder / f"{name}.json") for name in ("summary", "plan", "environment"))
    summary, plan, environment = (values if isinstance(values, dict) else {} for values in documents)
    return RunRecord(folder, config, metrics, summary, plan, environment)


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration of a run with dotted keys; empty if its folder has none.

    Raises:
        ConfigError: It cannot be read.
    """
    return read_flat_config(folder) if (folder / "config.yaml").exists() else {}


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / name).exists() for name in ("config.yaml", METRICS))


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, otherwise the run folders below it; links are followed."""
    if is_run(folder):
        return [folder]
    marks = ("plan.json", METRICS)
    found = {
        path.parent for depth in range(1, DEPTH + 1) for mark in marks for path in folder.glob("*/" * depth + mark)
    }
    return sorted(found, key=_place)


def _place(folder: Path) -> tuple[Path, int, Path]:
    """By which run folders are sorted: their paths, trials by their number."""
    trial = TRIAL_FOLDER.fullmatch(folder.name)
    return folder.parent, int(trial[1]) if trial else -1, folder


def describe_geometry(line: MetricsLine) -> str:
    """The lengths and the batch size with which a validation or test was measured, as they are printed."""
    try:
        return f"{Geometry.from_record(line)} batch {line['batch_size']}"
    except KeyError:
        return "lengths not recorded"


def score_of(line: MetricsLine, metric: str) -> float:
    """Perplexity or bits per character of a result that has a finite loss."""
    from txl.tracking.scores import score_from_loss

    return float(line[metric]) if line.get(metric) is not None else score_from_loss(line["loss"], metric)


def format_loss(run: RunRecord, line: MetricsLine) -> str:
    """Loss and score, such as `3.1354 (ppl 23.00)`, or `not finite` (metrics.jsonl then holds null)."""
    if line["loss"] is None:
        return "not finite"
    return f"{line['loss']:.4f} ({run.metric} {score_of(line, run.metric):.{4 if run.metric == 'bpc' else 2}f})"
