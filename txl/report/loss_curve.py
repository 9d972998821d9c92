"""Draw the loss curve of a run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from txl.errors import ConfigError
from txl.report.runs import RunRecord, describe_geometry, format_loss, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOR, VALID_COLOR, TEXT_COLOR = "#9db8d6", "#c1440e", "#444444"


LOSS_CURVE = Path("report", "loss.png")  # in a run folder


def plot_loss_curve(run_dir: Path) -> Path:
    """Draw training and validation loss (nats per token) against the step to report/loss.png in the run folder.

    Returns the file's path. Raises ConfigError if there is nothing to draw yet.
    """
    run = read_run(run_dir)
    curve = run.metrics.train
    if not curve.step and not run.metrics.valid:
        raise ConfigError(f"{run_dir}/metrics.jsonl holds no losses yet; try again after train.log_interval steps")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = [], []
    for step, loss in zip(curve.step, curve.loss, strict=True):
        if loss is not None:
            steps.append(step)
            losses.append(loss)
    axes.plot(steps, losses, color=TRAIN_COLOR, linewidth=1, label="train", zorder=2)
    valid = [line for line in run.metrics.valid if line["loss"] is not None]
    if valid:
        points = [line["step"] for line in valid], [line["loss"] for line in valid]
        axes.plot(*points, color=VALID_COLOR, linewidth=1, marker="o", markersize=4, label="valid", zorder=3)
        last = valid[-1]
        axes.annotate(  # right of both curves, so that it crosses none
            f"valid {format_loss(run, last)}".replace(" (", "\n("),
            (max([last["step"], *steps[-1:]]), last["loss"]),
            xytext=(8, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            annotation_clip=False,
            color=VALID_COLOR,
            weight="bold",
        )
    _frame(figure, axes, run, losses + [line["loss"] for line in valid])
    path = run.folder / LOSS_CURVE
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
    return path


def _frame(figure: "Figure", axes: "Axes", run: RunRecord, losses: list[float]) -> None:
    """Add title, labels and limits, and a caption with the lengths that losses were measured with."""
    axes.set_title(run.name + (f" · seed {run.seed}" if run.seed is not None else ""), loc="left", weight="bold")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(left=0, right=run.steps)
    if len(losses) > 20:  # without limits the high losses of the first steps would flatten the rest
        low, high = min(losses), sorted(losses)[int(0.98 * (len(losses) - 1))]
        axes.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.08 * (high - low + 1e-9))
    axes.grid(color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    last = {split: lines[-1] for split, lines in (("valid", run.metrics.valid), ("test", run.metrics.test)) if lines}
    caption = [f"{split} loss {format_loss(run, line)} with {describe_geometry(line)}" for split, line in last.items()]
    if caption:
        figure.supxlabel("\n".join(caption), fontsize=8, color=TEXT_COLOR)
