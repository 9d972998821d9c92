"""What became of the runs below a folder: `python -m txl.launch status FOLDER`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from txl.files import flatten
from txl.launch.job_state import SubmittedJob, describe_job
from txl.launch.run_lock import is_locked

DEPTH = 3  # levels of folders below which run folders are looked for
HEADER = ("point", "job", "state", "step", "loss", "nodes", "restarts")
IGNORED_KEYS = ("run_dir", "resume", "cluster.wait")  # runs that differ in these alone are the same point


def main(arguments: list[str]) -> int:
    """Print the table for `status FOLDER`; returns the exit code."""
    if len(arguments) != 2 or arguments[0] != "status":
        print("usage: python -m txl.launch status FOLDER   (a run folder, or a folder of runs)", file=sys.stderr)
        return 2
    folder = Path(arguments[1])
    runs = runs_below(folder)
    if not runs:
        print(f"error: {folder} holds no run: no config.yaml in it or up to {DEPTH} folders below", file=sys.stderr)
        return 2
    print(status_table(runs))
    return 0


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, otherwise the run folders below it."""
    if (folder / "config.yaml").exists():
        return [folder]
    found = [path.parent for depth in range(1, DEPTH + 1) for path in folder.glob("*/" * depth + "config.yaml")]
    return sorted(path for path in found if (path / "plan.json").exists())


def status_table(runs: list[Path]) -> str:
    """One line per run: what it has differently from the others, and what became of it."""
    names = name_points([read_flat_config(run) for run in runs])
    rows = [HEADER, *((name, *status_row(run)) for name, run in zip(names, runs, strict=True))]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in rows)


def read_flat_config(run: Path) -> dict[str, Any]:
    """config.yaml with dotted keys."""
    import yaml

    return flatten(yaml.load((run / "config.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def name_points(configurations: list[dict[str, Any]]) -> list[str]:
    """Name each run by the keys that differ from the others; a single one by its name and seed."""
    if len(configurations) == 1:
        return [f"{configurations[0]['name']} seed={configurations[0]['seed']}"]
    keys = sorted({key for values in configurations for key in values} - set(IGNORED_KEYS))
    differing = [key for key in keys if len({json.dumps(values.get(key)) for values in configurations}) > 1]
    named = (" ".join(f"{key}={values.get(key)}" for key in differing) for values in configurations)
    return [name or str(values["name"]) for name, values in zip(named, configurations, strict=True)]


def status_row(run: Path) -> tuple[str, ...]:
    """job, state, step, loss, nodes, restarts: from SLURM while it remembers the job, otherwise from the run folder."""
    submitted, attempts = SubmittedJob.of(run), read_json_lines(run / "slurm" / "attempts.jsonl")
    shown, last = describe_job(submitted.job) if submitted else {}, last_train_record(run)
    state = shown.get("JobState") or state_of_folder(run)
    nodes = shown.get("NodeList", "")
    if nodes in ("", "(null)", "None assigned"):
        nodes = attempts[-1].get("nodes") or "" if attempts else ""
    restarts = shown.get("Restarts") or (str(len(attempts) - 1) if attempts else "")
    job = submitted.job if submitted else "local"
    return job, state, str(last.get("step", "")), f"{last['loss']:.4f}" if last else "", nodes or "-", restarts or "0"


def state_of_folder(run: Path) -> str:
    """What became of a run, from its folder alone; named as SLURM names the states of jobs."""
    if is_locked(run):
        return "RUNNING"
    if (run / "summary.json").exists():
        return "COMPLETED"
    if any(run.glob("logs/rank_*.error")):
        return "FAILED"
    return "STOPPED" if (run / "metrics.jsonl").exists() else "UNKNOWN"


def last_train_record(run: Path) -> dict[str, Any]:
    """The newest training record of metrics.jsonl; only its end is read, because a long run has a million of them."""
    with contextlib.suppress(OSError), open(run / "metrics.jsonl", "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, KeyError):
                record: dict[str, Any] = json.loads(line)
                if record["kind"] == "train":
                    return record
    return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object per line. Damaged lines are left out; no file: no records."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
