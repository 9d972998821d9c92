"""A table of runs, with mean and standard deviation over seeds."""

import statistics
from collections import defaultdict

from txl.report.runs import MetricsLine, RunRecord, describe_geometry, format_loss


def format_runs_table(runs: list[RunRecord]) -> str:
    """One row per run; below runs that differ in the seed only, a row with their mean ± standard deviation."""
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


def _row(run: RunRecord) -> list[str]:
    best, test, speed = run.best, run.test[-1] if run.test else None, run.tokens_per_second
    measured = dict.fromkeys(describe_geometry(line) for line in (best, test) if line)
    return [
        f"{run.name}/{run.folder.name}",
        "-" if run.seed is None else str(run.seed),
        str(run.steps),
        "-" if best is None else format_loss(run, best),
        "-" if test is None else format_loss(run, test),
        "-" if speed is None else f"{speed:,.0f}",
        "; test: ".join(measured),
    ]


def _mean_row(members: list[RunRecord]) -> list[str]:
    metric = members[0].metric
    best = [run.best for run in members]
    test = [run.test[-1] if run.test else None for run in members]
    speeds = [speed for run in members if (speed := run.tokens_per_second) is not None]
    return [
        f"mean ± sd, {len(members)} seeds",
        "",
        "",
        _mean_score(best, metric),
        _mean_score(test, metric),
        "-" if len(speeds) < len(members) else f"{statistics.fmean(speeds):,.0f}",
        "",
    ]


def _mean_score(lines: list[MetricsLine | None], metric: str) -> str:
    """Mean ± standard deviation, or `-` if a run has no result: a mean without it could be too good."""
    finished = [line for line in lines if line is not None and line["loss"] is not None]
    if len(finished) < len(lines):
        return "-"
    losses, scores = [line["loss"] for line in finished], [line[metric] for line in finished]
    digits = 4 if metric == "bpc" else 2
    return (
        f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f} "
        f"({metric} {statistics.fmean(scores):.{digits}f} ± {statistics.stdev(scores):.{digits}f})"
    )
