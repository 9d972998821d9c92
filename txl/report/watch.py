"""`txl report --watch`: the states, the progress and the losses of runs while they go on."""

import os
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txl.files import open_for_reading
from txl.report.formats import print_text, printable_line, to_terminal
from txl.report.labels import label_runs
from txl.report.run_state import RunState, find_run_state, seconds_left_of_run
from txl.report.runs import METRICS, RunRecord, read_settings
from txl.report.tables import Column, Table, show_duration, show_fixed
from txl.system.console import is_terminal
from txl.tracking.metrics_file import TRAIN_LINE, last_records, loss_of_line

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 16  # columns
MOST_REASONS = 3  # below the table
URGENCY = ("running", "pending", "failed", "diverged", "stopped", "cancelled", "pruned", "not started", "finished")


@dataclass
class FollowedRun:
    """A run that is watched. Only what was added to its metrics.jsonl since the last look is read."""

    folder: Path
    losses: list[float] = field(default_factory=list)  # of all training lines, in order; finite ones
    position: int = 0  # in metrics.jsonl
    state: RunState = RunState("not started")
    train: dict[str, Any] = field(default_factory=dict)  # the newest record
    valid: dict[str, Any] = field(default_factory=dict)
    best: float | None = None  # the lowest validation loss so far

    def look(self) -> None:
        """Read what is new, and find the state."""
        if not (self.state.is_over and self.train):
            self.train, self.valid = last_records(self.folder, "train", "valid")
            self._read_losses()
        self.state = find_run_state(self.folder)
        loss = self.valid.get("loss")
        if loss is not None and (self.best is None or loss < self.best):
            self.best = loss

    def _read_losses(self) -> None:
        try:
            with open_for_reading(self.folder / METRICS) as file:
                if file.seek(0, 2) < self.position:  # a resumed run has cut its records back
                    self.position, self.losses = 0, []
                file.seek(self.position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self.position += len(line)
                    loss = loss_of_line(line) if line.startswith(TRAIN_LINE) else None
                    if loss is not None:
                        self.losses.append(loss)
        except OSError:
            return


def sparkline(values: Sequence[float], width: int = SPARKLINE) -> str:
    """A curve in one line of text: ▇▅▃▂▁. Long ones are averaged to `width` characters."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for value in means)


def watch_runs(find: Callable[[], list[Path]], seconds: float) -> None:
    """Show runs until all have ended. Ctrl-C ends the watching, not the runs.

    On a terminal the table is drawn again in place; elsewhere it is printed whenever it has changed.

    Args:
        find: Gives the run folders; new ones may appear.
        seconds: Between two looks.
    """
    followed: dict[Path, FollowedRun] = {}
    show = _terminal() if is_terminal(sys.stdout) else _Printer()
    with show:
        while True:
            for folder in find():
                followed.setdefault(folder, FollowedRun(folder)).look()
            size = shutil.get_terminal_size()
            show.update(watch_table(list(followed.values()), size.lines - 6), size.columns)
            if all(run.state.is_over for run in followed.values()):
                return
            time.sleep(seconds)


def watch_table(followed: list[FollowedRun], most_rows: int) -> Table:
    """What is shown of runs at one look: those that go on first, no more rows than fit."""
    runs = [RunRecord(one.folder, read_settings(one.folder)) for one in followed]
    labels = [label.run for label in label_runs(runs)]
    columns = [
        Column("run", "run", is_text=True),
        Column("state", "state", is_text=True),
        Column("step", "step", is_text=True),
        Column("loss", "loss", show=show_fixed(3)),
        Column("valid", "best valid", show=show_fixed(3)),
        Column("left", "left", show=show_duration),
        Column("curve", "training loss", is_text=True),
    ]
    order = sorted(range(len(followed)), key=lambda i: (URGENCY.index(followed[i].state.word), labels[i]))
    table = Table("watch", _headline(followed, runs, labels), columns)
    for i in order[: max(1, most_rows)]:
        one, max_step = followed[i], runs[i].max_step
        left = seconds_left_of_run(one.train, max_step) if one.state.word == "running" else None
        table.rows.append(
            {
                "run": labels[i],
                "state": one.state.word,
                "step": f"{one.train['step']}/{max_step or '?'}" if one.train else "-",
                "loss": one.train.get("loss") if not one.train or one.train.get("loss") is not None else "not finite",
                "valid": one.best,
                "left": left,
                "curve": sparkline(one.losses),
            }
        )
    hidden = len(followed) - len(table.rows)
    if hidden > 0:
        table.notes.append(f"... and {hidden} more")
    reasons = Counter((one.state.word, one.state.why) for one in followed if one.state.why)
    table.notes += [f"{count} {word}: {why}" for (word, why), count in reasons.most_common(MOST_REASONS)]
    return table


def _headline(followed: list[FollowedRun], runs: list[RunRecord], labels: list[str]) -> str:
    count = Counter(one.state.word for one in followed)
    parts = [", ".join(f"{count[word]} {word}" for word in URGENCY if count[word])]
    pairs = zip(followed, runs, strict=True)
    left = [seconds_left_of_run(one.train, run.max_step) for one, run in pairs if one.state.word == "running"]
    known = [seconds for seconds in left if seconds is not None]
    if known:
        later = " for those that run" if count["pending"] else ""
        parts.append(f"{show_duration(max(known))} left{later}")
    best = min(((one.best, label) for one, label in zip(followed, labels, strict=True) if one.best), default=None)
    if best:
        parts.append(f"best valid {best[0]:.3f}: {best[1]}")
    return " · ".join(parts)


def _wrapped_title(table: Table, width: int) -> str:
    return textwrap.fill(printable_line(table.title), width)


class _Printer:
    """Prints a table whenever it has changed."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> "_Printer":
        return self

    def __exit__(self, *ending: object) -> None:
        return None

    def update(self, table: Table, width: int) -> None:
        """Show the table."""
        text = f"{_wrapped_title(table, width)}\n{to_terminal([table], width)}"
        if text != self._last:
            print_text(text + "\n")
        self._last = text


class _LivePrinter(_Printer):
    """Draws a table again in place."""

    def __init__(self) -> None:
        from rich.live import Live

        super().__init__()
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> "_LivePrinter":
        self._live.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._live.stop()

    def update(self, table: Table, width: int) -> None:
        """Show the table."""
        from rich.text import Text

        color = "NO_COLOR" not in os.environ
        text = Text(_wrapped_title(table, width), style="bold" if color else "").append("\n")
        self._live.update(text + Text.from_ansi(to_terminal([table], width, color)), refresh=True)


def _terminal() -> _Printer:
    return _LivePrinter()
