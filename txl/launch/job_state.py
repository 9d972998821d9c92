"""What SLURM says about a job."""

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

ENDED = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY".split()


@dataclass(frozen=True)
class Submitted:
    """One run folder's job."""

    run_dir: Path
    job: str
    log: Path  # of rank 0

    @staticmethod
    def of(run_dir: Path) -> "Submitted | None":
        with contextlib.suppress(OSError, ValueError, KeyError):
            values = json.loads((run_dir / "slurm" / "job.json").read_text())
            return Submitted(run_dir, values["job"], Path(values["log"]))
        return None


# --------------------------------------------------------------------------- asking


def ask(*command: str) -> str | None:
    """Standard output; None where the program is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def controller_says(job: str) -> dict[str, str]:
    """JobState, ExitCode, Restarts, NodeList, ... while the controller remembers the job (five minutes, often)."""
    line = (ask("scontrol", "-o", "show", "job", job) or "").partition("\n")[0]
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def accounting_says(job: str) -> dict[str, str]:
    """State, ExitCode, NodeList where the site has accounting."""
    lines = (ask("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", job) or "").splitlines()
    for line in reversed(lines):
        fields = line.split("|")
        if fields[0] == job and len(fields) > 1:
            keys = ("JobID", "JobState", "ExitCode", "NodeList")
            return dict(zip(keys, fields, strict=False)) | {"JobState": fields[1].split()[0]}
    return {}


def state_of(job: str) -> str | None:
    """RUNNING, PENDING, FAILED, ...; None where nobody knows the job any more."""
    return (controller_says(job) or accounting_says(job)).get("JobState")
