"""The loss curve of a run as a picture."""

import statistics
from pathlib import Path

from txl.errors import ConfigError
from txl.report.runs import Run, geometry_of, read_run, score

TRAIN_COLOR, VALID_COLOR, TEXT_COLOR = "#9db8d6", "#c1440e", "#444444"


TRAIN_POINTS = 2000  # a longer curve is averaged down to about so many


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
