"""What became of a run: from the files of its folder, and from SLURM while it remembers the job."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txl.errors import shortened
from txl.files import open_for_reading, read_json
from txl.system.run_lock import is_locked
from txl.system.slurm_jobs import SubmittedJob, describe_job

LOG_END = 8192  # bytes at the end of a log in which the reason of an end is looked for
REASON_LENGTH = 160  # characters
PRUNED_MARK = "pruned.json"  # in the run folder of a trial that `txl search` stopped because it was hopeless
WORDS = {"PENDING": "pending", "RUNNING": "running", "COMPLETING": "running", "CONFIGURING": "running"}
WORDS |= {"COMPLETED": "stopped", "CANCELLED": "cancelled"}


@dataclass(frozen=True)
class RunState:
    """What became of a run, in a word, and why."""

    word: str  # finished, running, pending, pruned, cancelled, diverged, failed, stopped or not started
    why: str = ""  # one line; often empty

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen unless the run is continued."""
        return self.word not in ("running", "pending")


def find_run_state(run: Path) -> RunState:
    """What became of the run in a folder. SLURM is asked only about a run that has not finished."""
    state = state_of_folder(run)
    if state == "COMPLETED":
        return RunState("finished")
    if state == "RUNNING":
        return RunState("running")
    job = SubmittedJob.of(run)
    said = describe_job(job.job) if job else {}
    told = said.get("JobState", "")
    if is_pruned(run) and WORDS.get(told) not in ("pending", "running"):
        return RunState("pruned", why_pruned(run))
    if told in WORDS and WORDS[told] != "stopped":
        reason = said.get("Reason", "")
        return RunState(WORDS[told], "" if reason in ("", "None") else reason)
    diverged = reason_in_log(run / "train.log", r"the training diverged: (.*)")
    if diverged:
        return RunState("diverged", diverged)
    if state == "FAILED" or told in ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"):
        return RunState("failed", reason_of_failure(run) or told.lower().replace("_", " "))
    return RunState("stopped" if state == "STOPPED" else "not started")


def is_pruned(run: Path) -> bool:
    """Whether a search stopped this trial, and it has not reached its end since."""
    return (run / PRUNED_MARK).exists() and not (run / "summary.json").exists()


def why_pruned(run: Path) -> str:
    """Why a search stopped a trial; empty if that is not known."""
    mark = read_json(run / PRUNED_MARK)
    return str(mark.get("why", "")) if isinstance(mark, dict) else ""


def seconds_left_of_run(train: dict[str, Any], max_step: int | None) -> float | None:
    """Seconds to the last step at the pace of a run's newest training record; None if that is not known."""
    if not train.get("ms_per_batch") or max_step is None:
        return None
    left: int = max(0, max_step - train["step"])
    return float(train["ms_per_batch"]) / 1000 * left


def reason_of_failure(run: Path) -> str:
    """The last line of what the rank wrote that failed first; empty if there is nothing."""
    errors = sorted(run.glob("logs/rank_*.error"), key=lambda path: path.stat().st_mtime_ns)
    return reason_in_log(errors[0], r"(.*\S.*)").removeprefix("error: ") if errors else ""


def reason_in_log(log: Path, pattern: str) -> str:
    """The last match of a pattern with one group at the end of a log, on one line; empty without one."""
    try:
        with open_for_reading(log) as file:
            file.seek(max(0, file.seek(0, 2) - LOG_END))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    found = re.findall(pattern, text)
    return shortened(found[-1].strip(), REASON_LENGTH) if found else ""


def state_of_folder(run: Path) -> str:
    """What became of a run, from its folder alone; named as SLURM names the states of jobs."""
    if is_locked(run):
        return "RUNNING"
    if (run / "summary.json").exists():
        return "COMPLETED"
    if is_pruned(run):
        return "PRUNED"
    if any(run.glob("logs/rank_*.error")):
        return "FAILED"
    if (run / "result.json").exists():  # an evaluation that was a job
        return "COMPLETED"
    return "STOPPED" if (run / "metrics.jsonl").exists() else "UNKNOWN"
