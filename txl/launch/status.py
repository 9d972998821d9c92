"""What became of the runs below a folder: a table from SLURM's answers and from the run folders themselves.

Nothing is written: the folders may be read-only. Torch is not needed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txl.config.differences import name_points, read_flat_config
from txl.errors import ConfigError, error_line, shortened
from txl.report.run_state import is_pruned, reason_of_failure, seconds_left_of_run, state_of_folder
from txl.report.runs import DEPTH, runs_below
from txl.system.command_parser import CommandParser
from txl.system.slurm_jobs import ENDED, SubmittedJob, describe_job
from txl.tracking.metrics_file import last_records, read_json_lines

WIDTH = 120  # columns of the table at most
SHORTEST_NAME, SHORTEST_REASON = 20, 30  # columns that a shortened name and a shortened reason keep
EVALUATION_JOBS = "evaluations/*/slurm/job.json"  # in a run folder
HEADER = ("point", "job", "state", "step", "loss", "valid", "left", "nodes", "restarts", "reason")


def main(arguments: list[str] | None = None) -> int:
    """Print the table of `status FOLDER...`; returns the exit code."""
    parser = CommandParser(prog="txl status", description="What became of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of runs")
    runs = []
    for folder in parser.parse_args(arguments).folders:
        found = started_runs_below(folder)
        if not found:
            print(error_line(no_run_below(folder)), file=sys.stderr)
            return 2
        runs += found
    print(status_table(runs))
    return 0


def no_run_below(folder: Path) -> str:
    """What is said where `started_runs_below` finds nothing."""
    return f"{folder} holds no run: no config.yaml in it or up to {DEPTH} folders below"


def started_runs_below(folder: Path) -> list[Path]:
    """The run folders at or below a folder that hold a configuration, as every start writes it.

    Evaluations that were submitted as jobs follow the run whose checkpoint they read.
    """
    runs = [run for run in runs_below(folder) if (run / "config.yaml").exists()]
    return [path for run in runs for path in (run, *(job.parents[1] for job in sorted(run.glob(EVALUATION_JOBS))))]


def status_table(runs: list[Path]) -> str:
    """One line per run: what it has differently from the others, and what became of it.

    Columns that are empty in all rows are left out, except in front. Long reasons, then long names, are shortened to
    keep the width.
    """
    rows: list[tuple[str, ...]] = [HEADER, *_rows(runs)]
    rows = [tuple(cell for cell, keep in zip(row, _columns_to_show(rows), strict=True) if keep) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for column, shortest in ((-1, SHORTEST_REASON), (0, SHORTEST_NAME), (-1, 1)):
        too_wide = max(0, sum(widths) + 2 * (len(widths) - 1) - WIDTH)
        widths[column] = min(widths[column], max(shortest, widths[column] - too_wide))
    return "\n".join(
        "  ".join(_shortened(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _rows(runs: list[Path]) -> Iterator[tuple[str, ...]]:
    """A row for every run; a run with a damaged file has one as well, which says so."""
    configurations, problems = {}, {}
    for run in runs:
        try:
            configurations[run] = read_flat_config(run)
        except ConfigError as error:
            problems[run] = str(error)
    named = _names(configurations)
    for run in runs:
        if run in configurations:
            try:
                yield named[run], *status_row(run, configurations[run])
                continue
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                problems[run] = f"a damaged record: {type(error).__name__} {error}"
        yield run.name, "-", "UNREADABLE", *("-" for _ in HEADER[3:-1]), shortened(problems[run])


def _names(configurations: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """What each run has differently from the others; evaluations are named by the folders of run and evaluation."""
    trained = {run: config for run, config in configurations.items() if "train.max_step" in config}
    names = dict(zip(trained, name_points(list(trained.values())) if trained else [], strict=True))
    for run in configurations.keys() - trained.keys():
        names[run] = "/".join(run.absolute().parts[-3:])
    return names


def _columns_to_show(rows: list[tuple[str, ...]]) -> list[bool]:
    optional = {"left", "reason"}
    return [name not in optional or any(row[i] for row in rows[1:]) for i, name in enumerate(rows[0])]


def _shortened(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def status_row(run: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The cells behind the name: from SLURM while it remembers the job, otherwise from the run folder."""
    submitted, attempts = SubmittedJob.of(run), read_json_lines(run / "slurm" / "attempts.jsonl")
    shown = describe_job(submitted.job) if submitted else {}
    train, valid = last_records(run, "train", "valid")
    state = shown.get("JobState") or state_of_folder(run)
    if state in ENDED and is_pruned(run):
        state = "PRUNED"
    nodes = shown.get("NodeList", "")
    if nodes in ("", "(null)", "None assigned"):
        nodes = attempts[-1].get("nodes") or "" if attempts else ""
    restarts = shown.get("Restarts") or (str(len(attempts) - 1) if attempts else "")
    max_step = config.get("train.max_step")  # an evaluation has none
    return (
        submitted.job if submitted else "local",
        state,
        f"{train['step']}/{max_step}" if train else "-",
        show_loss(train),
        show_loss(valid),
        time_left(train, max_step) if state == "RUNNING" else "",
        nodes or "-",
        restarts or "0",
        _reason(run, state, shown.get("Reason", "None")),
    )


def _reason(run: Path, state: str, told: str) -> str:
    """Why a job waits, as SLURM says it, or why a run failed."""
    if state == "PENDING":
        return "" if told == "None" else told
    return reason_of_failure(run) if state == "FAILED" else ""


def show_loss(record: dict[str, Any]) -> str:
    """Nats per token of a metrics record; `-` without one."""
    if not record:
        return "-"
    return "not finite" if record["loss"] is None else f"{record['loss']:.4f}"


def time_left(train: dict[str, Any], max_step: int | None) -> str:
    """Hours, minutes and seconds to the last step, at the pace of the newest log line."""
    left = seconds_left_of_run(train, max_step)
    if left is None:
        return ""
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
