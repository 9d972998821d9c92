"""What became of a run, from the files of its folder."""

from pathlib import Path

from txl.system.run_lock import is_locked


def state_of_folder(run: Path) -> str:
    """What became of a run, from its folder alone; named as SLURM names the states of jobs."""
    if is_locked(run):
        return "RUNNING"
    if (run / "summary.json").exists():
        return "COMPLETED"
    if any(run.glob("logs/rank_*.error")):
        return "FAILED"
    return "STOPPED" if (run / "metrics.jsonl").exists() else "UNKNOWN"
