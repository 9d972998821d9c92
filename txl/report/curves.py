"""The curves of runs as plain numbers for a plot: losses against step, tokens and hours."""

import math
import statistics
from typing import Any

from txl.report.labels import label_runs
from txl.report.runs import RunRecord, describe_geometry
from txl.tracking.metrics_file import MetricsLine

PAUSE_SECONDS = 600  # a longer time without a record, between two attempts of a job, is no training
MOST_EVENTS = 50  # losses that are not finite, or spikes, that are drawn of a run


def curves_of_runs(runs: list[RunRecord]) -> list[dict[str, Any]]:
    """For every run its label, state and curves; losses in nats per token, None where one is not finite."""
    found = []
    for run, label in zip(runs, label_runs(runs), strict=True):
        hours, tokens = elapsed_hours(run), _TokensByStep(run)
        curve, valid = run.metrics.train, run.metrics.valid
        train_lines = zip(curve.step, curve.loss, curve.time, strict=True)
        train = [_point(step, loss, tokens, hours, time) for step, loss, time in train_lines]
        found.append(
            {
                "label": label.run,
                "setting": label.setting,
                "metric": run.metric,
                "state": run.state.word,
                "complete": run.is_complete,
                "train": _columns(train),
                "valid": _columns([_point(v["step"], v["loss"], tokens, hours, v.get("time")) for v in valid]),
                "lost": _lost_points(run, train),
                "spikes": _columns(_points_at(curve.spikes, train)),
                "geometry": describe_geometry(valid[-1]) if valid else "",
                "folder": str(run.folder),
            }
        )
    return found


def best_setting_first(runs: list[RunRecord]) -> list[RunRecord]:
    """Runs in the order of their settings' lowest validation losses, the seeds of a setting beside each other."""
    settings = [label.setting for label in label_runs(runs)]
    lowest: dict[str, float] = {}
    for run, setting in zip(runs, settings, strict=True):
        loss = run.best["loss"] if run.best and run.best["loss"] is not None else math.inf
        lowest[setting] = min(lowest.get(setting, math.inf), loss)
    order = sorted(range(len(runs)), key=lambda i: (lowest[settings[i]], settings[i], runs[i].seed or 0))
    return [runs[i] for i in order]


Point = tuple[int, float | None, int | None, float | None]  # step, loss, tokens, hours


def _point(
    step: int, loss: float | None, tokens: "_TokensByStep", hours: dict[float, float], time: float | None
) -> Point:
    spent = hours.get(time) if time is not None else None
    return step, None if loss is None else round(loss, 5), tokens.at(step), None if spent is None else round(spent, 5)


def _columns(points: list[Point]) -> dict[str, list[Any]]:
    return {name: [point[i] for point in points] for i, name in enumerate(("step", "loss", "tokens", "hours"))}


def _lost_points(run: RunRecord, train: list[Point]) -> dict[str, list[Any]]:
    """Where losses were not finite: at the last finite training loss before, and (`valid`) at the last validation's."""
    validations = run.metrics.valid
    steps = sorted({*run.metrics.train.not_finite, *(line["step"] for line in validations if line["loss"] is None)})
    points = _columns(_points_at(steps, train))
    finite = [(line["step"], line["loss"]) for line in validations if line["loss"] is not None]
    before = ([loss for at, loss in finite if at <= step][-1:] for step in points["step"])
    return points | {"valid": [round(losses[0], 5) if losses else None for losses in before]}


def _points_at(steps: list[int], train: list[Point]) -> list[Point]:
    """Steps at which something happened, at the height of the last finite loss of a point up to there."""
    found, i, height = [], 0, None
    for step in steps[:MOST_EVENTS]:
        while i < len(train) and train[i][0] <= step:
            height = train[i][1] if train[i][1] is not None else height
            i += 1
        near = train[max(0, i - 1)] if train else (step, None, None, None)
        found.append((step, height, near[2], near[3]))
    return found


def elapsed_hours(run: RunRecord) -> dict[float, float]:
    """Hours of training by the time of a record; pauses between the attempts of a job do not count."""
    lines: list[MetricsLine] = [*run.metrics.valid, *run.metrics.test]
    times = sorted({time for time in (*run.metrics.train.time, *(line.get("time") for line in lines)) if time})
    between = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    longest = max(PAUSE_SECONDS, 10 * statistics.median(between)) if between else 0.0
    hours, total = {}, 0.0
    for i, time in enumerate(times):
        total += between[i - 1] if i and between[i - 1] <= longest else 0.0
        hours[time] = total / 3600
    return hours


class _TokensByStep:
    """Tokens that a run was trained on after a step, between the records by a straight line."""

    def __init__(self, run: RunRecord):
        import numpy as np

        pairs = [(s, t) for s, t in zip(run.metrics.train.step, run.metrics.train.tokens, strict=True) if t is not None]
        self._steps = np.array([0, *(step for step, _ in pairs)], dtype=float)
        self._tokens = np.array([0, *(tokens for _, tokens in pairs)], dtype=float)

    def at(self, step: int) -> int | None:
        import numpy as np

        return int(np.interp(step, self._steps, self._tokens)) if len(self._steps) > 1 else None
