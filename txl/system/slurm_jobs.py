"""What SLURM says about a job: its controller (scontrol), and its accounting (sacct) if the site has one."""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from txl.files import parse_json, read_text_file

ENDED = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY".split()


@dataclass(frozen=True)
class SubmittedJob:
    """The job of one run folder."""

    run_dir: Path
    job: str  # SLURM's id; of an array's element `17_2`
    log: Path  # of rank 0

    @staticmethod
    def of(run_dir: Path) -> "SubmittedJob | None":
        """The job that was submitted last for a run folder, or None."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            values = parse_json(read_text_file(run_dir / "slurm" / "job.json"))
            return SubmittedJob(run_dir, values["job"], Path(values["log"]))
        return None


def job_state(job: str) -> str | None:
    """RUNNING, PENDING, FAILED, ...; None if SLURM does not remember the job."""
    return describe_job(job).get("JobState")


def describe_job(job: str) -> dict[str, str]:
    """JobState, ExitCode, NodeList, ... of a job; empty if SLURM does not remember it."""
    return ask_controller(job) or ask_accounting(job)


def ask_controller(job: str) -> dict[str, str]:
    """What scontrol shows of a job. The controller forgets a job a few minutes after its end."""
    line = (slurm_output("scontrol", "-o", "show", "job", job) or "").partition("\n")[0]
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def ask_accounting(job: str) -> dict[str, str]:
    """JobState, ExitCode and NodeList from sacct; empty if the site has no accounting."""
    shown = slurm_output("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", job) or ""
    for line in reversed(shown.splitlines()):
        fields = line.split("|")
        if fields[0] == job and len(fields) > 1:
            keys = ("JobID", "JobState", "ExitCode", "NodeList")
            return dict(zip(keys, fields, strict=False)) | {"JobState": fields[1].split()[0]}
    return {}


def slurm_output(*command: str) -> str | None:
    """Standard output of a command of SLURM; None if it is missing, fails or takes longer than 30 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
