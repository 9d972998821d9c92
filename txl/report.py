"""What came out: the loss curve of a run, and a table of runs with mean and standard deviation over seeds.

    python -m txl.report RUN_FOLDER...

Everything is read from the run folders; torch is not needed.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from txl.config import Geometry
from txl.errors import ConfigError

TRAIN_COLOR, VALID_COLOR, TEXT_COLOR = "#9db8d6", "#c1440e", "#444444"
TRAIN_POINTS = 2000  # a longer curve is averaged down to about so many


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


# --------------------------------------------------------------------------- the loss curve


def plot_loss_curve(run_dir: Path) -> Path:
    """Training and validation loss in nats per token against the step -> report/loss.png in the run folder."""
    run = read_run(run_dir)
    if not run.train and not run.valid:
        raise ConfigError(f"{run_dir}/metrics.jsonl holds no losses yet; try again after train.log_interval steps")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = thinned(run.train)
    axes.plot(steps, losses, color=TRAIN_COLOR, linewidth=1, label="train", zorder=2)
    valid = [line for line in run.valid if line["loss"] is not None]
    if valid:
        points = [line["step"] for line in valid], [line["loss"] for line in valid]
        axes.plot(*points, color=VALID_COLOR, linewidth=1, marker="o", markersize=4, label="valid", zorder=3)
        last = valid[-1]
        axes.annotate(
            f"valid {score(run, last)}",
            (last["step"], last["loss"]),
            xytext=(-4, 10),
            textcoords="offset points",
            ha="right",
            color=VALID_COLOR,
            weight="bold",
        )
    _frame(figure, axes, run, losses + [line["loss"] for line in valid])
    path = run.folder / "report" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    return path


def _frame(figure, axes, run: Run, losses: list[float]) -> None:
    """Title, labels, limits, and the geometry that the losses were measured under."""
    axes.set_title(run.name + (f" · seed {run.seed}" if run.seed is not None else ""), loc="left", weight="bold")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(left=0)
    if len(losses) > 20:  # the first steps of all would press the rest to the floor
        low, high = min(losses), sorted(losses)[int(0.98 * (len(losses) - 1))]
        axes.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.08 * (high - low + 1e-9))
    axes.grid(color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    last = {split: lines[-1] for split, lines in (("valid", run.valid), ("test", run.test)) if lines}
    caption = [f"{split} loss {score(run, line)} with {geometry_of(line)}" for split, line in last.items()]
    if caption:
        figure.supxlabel("\n".join(caption), fontsize=8, color=TEXT_COLOR)


def thinned(lines: list[dict]) -> tuple[list[int], list[float]]:
    """Steps and losses of step lines; neighbours averaged where there are more than can be seen."""
    lines = [line for line in lines if line["loss"] is not None]
    width = -(-len(lines) // TRAIN_POINTS) or 1
    parts = [lines[start : start + width] for start in range(0, len(lines), width)]
    return [part[-1]["step"] for part in parts], [statistics.fmean(line["loss"] for line in part) for part in parts]


def geometry_of(line: dict) -> str:
    """The evaluation geometry of a validation or test line, as it is printed beside every perplexity."""
    names = ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")
    return f"{Geometry(**{name: line[name] for name in names})} batch {line['batch_size']}"


# --------------------------------------------------------------------------- the table


def table(runs: list[Run]) -> str:
    """One row per run; under runs that differ in the seed alone, their mean ± standard deviation."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    rows = [["run", "seed", "steps", "best valid loss", "test", "tok/s", "measured with"]]
    for members in groups.values():
        members.sort(key=lambda run: (run.seed is None, run.seed))
        rows += [_row(run) for run in members]
        if len(members) > 1:
            rows.append(_mean_row(members))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(run: Run) -> list[str]:
    best, test, speed = run.best, run.test[-1] if run.test else None, run.tokens_per_second
    measured = dict.fromkeys(geometry_of(line) for line in (best, test) if line)
    return [
        f"{run.name}/{run.folder.name}",
        "-" if run.seed is None else str(run.seed),
        str(run.steps),
        "-" if best is None else score(run, best),
        "-" if test is None else score(run, test),
        "-" if speed is None else f"{speed:,.0f}",
        "; test: ".join(measured),
    ]


def _mean_row(members: list[Run]) -> list[str]:
    metric = members[0].metric
    best = [run.best for run in members]
    test = [run.test[-1] if run.test else None for run in members]
    speeds = [run.tokens_per_second for run in members]
    return [
        f"mean ± sd, {len(members)} seeds",
        "",
        "",
        _mean_score(best, metric),
        _mean_score(test, metric),
        "-" if None in speeds else f"{statistics.fmean(speeds):,.0f}",
        "",
    ]


def _mean_score(lines: list[dict | None], metric: str) -> str:
    """Nothing where a run is missing: a mean of the runs that happened to finish would flatter."""
    if any(line is None or line["loss"] is None for line in lines):
        return "-"
    losses, scores = [line["loss"] for line in lines], [line[metric] for line in lines]
    digits = 4 if metric == "bpc" else 2
    return (
        f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f} "
        f"({metric} {statistics.fmean(scores):.{digits}f} ± {statistics.stdev(scores):.{digits}f})"
    )


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m txl.report", description="Plot and compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    try:
        runs = [read_run(folder) for folder in run_folders(parser.parse_args(arguments).runs)]
        for run in runs:
            if run.train or run.valid:
                print(plot_loss_curve(run.folder))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
