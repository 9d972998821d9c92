"""What became of the runs below a folder: `python -m txl.launch status FOLDER`."""

import contextlib
import json
import sys
from pathlib import Path

from txl.files import flatten
from txl.launch.job_state import Submitted, accounting_says, controller_says
from txl.launch.run_lock import in_use

DEPTH = 3  # folders of runs that a run folder may lie below


HEADER = ("point", "job", "state", "step", "loss", "nodes", "restarts")


NO_POINT = ("run_dir", "resume", "cluster.wait")  # differ without making another point


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "status":
        print("usage: python -m txl.launch status FOLDER   (a run folder, or a folder of runs)", file=sys.stderr)
        return 2
    folder = Path(arguments[1])
    runs = run_folders(folder)
    if not runs:
        print(f"error: {folder} holds no run: no config.yaml in it or up to {DEPTH} folders below", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the runs below it; a run's copy of the code is none."""
    if (folder / "config.yaml").exists():
        return [folder]
    found = [path.parent for depth in range(1, DEPTH + 1) for path in folder.glob("*/" * depth + "config.yaml")]
    return sorted(path for path in found if (path / "plan.json").exists())


def table(runs: list[Path]) -> str:
    names = points([configuration(run) for run in runs])
    rows = [HEADER, *((name, *row(run)) for name, run in zip(names, runs, strict=True))]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in rows)


def configuration(run: Path) -> dict:
    import yaml

    return flatten(yaml.load((run / "config.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def points(configurations: list[dict]) -> list[str]:
    """Each run by what it has differently from the others; a single one by its name and seed."""
    if len(configurations) == 1:
        return [f"{configurations[0]['name']} seed={configurations[0]['seed']}"]
    keys = sorted(set().union(*configurations) - set(NO_POINT))
    differing = [key for key in keys if len({json.dumps(values.get(key)) for values in configurations}) > 1]
    named = (" ".join(f"{key}={values.get(key)}" for key in differing) for values in configurations)
    return [name or str(values["name"]) for name, values in zip(named, configurations, strict=True)]


def row(run: Path) -> tuple[str, ...]:
    """job, state, step, loss, nodes, restarts: SLURM's word where it still has one, and the folder's otherwise."""
    submitted, attempts, last = Submitted.of(run), lines(run / "slurm" / "attempts.jsonl"), last_step(run)
    said = (controller_says(submitted.job) or accounting_says(submitted.job)) if submitted else {}
    state = said.get("JobState") or state_of_folder(run)
    nodes = said.get("NodeList", "")
    if nodes in ("", "(null)", "None assigned"):
        nodes = attempts[-1].get("nodes") or "" if attempts else ""
    restarts = said.get("Restarts") or (str(len(attempts) - 1) if attempts else "")
    job = submitted.job if submitted else "local"
    return job, state, str(last.get("step", "")), f"{last['loss']:.4f}" if last else "", nodes or "-", restarts or "0"


def state_of_folder(run: Path) -> str:
    """As SLURM would say it."""
    if (run / ".lock").exists() and in_use(run):
        return "RUNNING"
    if (run / "summary.json").exists():
        return "COMPLETED"
    if any(run.glob("logs/rank_*.error")):
        return "FAILED"
    return "STOPPED" if (run / "metrics.jsonl").exists() else "UNKNOWN"


def last_step(run: Path) -> dict:
    """The newest training record; read from the end, for a long run has a million of them."""
    with contextlib.suppress(OSError), open(run / "metrics.jsonl", "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, KeyError):
                record = json.loads(line)
                if record["kind"] == "train":
                    return record
    return {}


def lines(path: Path) -> list[dict]:
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
