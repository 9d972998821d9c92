"""Wait until submitted jobs have ended, and say which rank failed first."""

import contextlib
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from txl.files import open_for_reading
from txl.launch.run_folder import error_file, first_failed_rank
from txl.system.hardware import parse_core_list
from txl.system.process_exit import INTERRUPTED
from txl.system.slurm_jobs import ENDED, SubmittedJob, describe_job, slurm_output

POLL_SECONDS = 1.0
CONFIRMATIONS = 3  # polls in a row that must find a job ended: a job that is about to be requeued may look so once


@dataclass
class Watched:
    """A job that is waited for, and what is known of it."""

    job: SubmittedJob
    state: str | None = None
    times_ended: int = 0
    exit_code: int | None = None  # None: it has not ended
    silent: bool = False  # no state is printed any more

    def poll(self, quiet: bool) -> None:
        """Ask SLURM once. Prints a new state; with `quiet` not that the job is running."""
        shown = describe_job(self.job.job)
        state = shown.get("JobState")
        if state is None and slurm_output("scontrol", "ping") is None:
            return  # the controller does not answer: ask again later
        if state is None:
            done = (self.job.run_dir / "summary.json").exists()
            state, shown = ("COMPLETED", {}) if done else ("FAILED", {"ExitCode": "1:0"})
        if state != self.state:
            self.state = state
            if not self.silent and (not quiet or state != "RUNNING"):
                reason = f" ({shown['Reason']})" if shown.get("Reason", "None") != "None" else ""
                print(f"job {self.job.job} {state}{reason}", flush=True)
        self.times_ended = self.times_ended + 1 if state in ENDED else 0
        if state == "COMPLETED":
            self.exit_code = 0
        elif self.times_ended == CONFIRMATIONS:
            status, _, number = shown.get("ExitCode", "1:0").partition(":")
            self.exit_code = int(status) or (128 + int(number or 0) if int(number or 0) else 1)


def wait_for_jobs(jobs: list[SubmittedJob]) -> int:
    """Show the log of a single job, or the states of several, until all have ended; returns the worst exit code."""
    watched = [Watched(job) for job in jobs]
    log = FollowedFile(jobs[0].log) if len(jobs) == 1 else None
    try:
        while open_jobs := [one for one in watched if one.exit_code is None]:
            for one in open_jobs:
                one.poll(quiet=log is not None)
            if log:
                log.print_new_lines()
            waiting = sum(one.exit_code is None for one in watched)
            if waiting:
                time.sleep(POLL_SECONDS * max(1, waiting / 8))  # the controller serves others, too
    except KeyboardInterrupt:
        return offer_to_cancel([one.job.job for one in watched if one.exit_code is None])
    if log:
        log.print_new_lines()
    for one in watched:
        print_end(one)
    return max(one.exit_code or 0 for one in watched)


def print_end(ended: Watched) -> None:
    """Say why a job failed; nothing for a completed one."""
    job, state = ended.job, ended.state
    if state == "COMPLETED":
        return
    if not job.log.exists():
        why = "it never started"
    elif state in ("CANCELLED", "TIMEOUT"):  # SLURM killed the ranks: none of them is at fault
        why = f"see {job.log}"
    else:
        why = describe_failure(job)
    print(f"job {job.job} {state} (exit code {ended.exit_code}): {why}", file=sys.stderr, flush=True)


def describe_failure(job: SubmittedJob) -> str:
    """The rank that failed first, its log, and its error."""
    text = job.log.read_text(errors="replace")
    ends = ends_of_ranks(text[text.rfind("Starting with JobEnvironment") :])
    rank = first_failed_rank(job.run_dir)
    killed = [one for one in ends if not error_file(job.run_dir, one).exists()]  # before it could write an error
    if killed and (
        rank is None or killed[0] == next(iter(ends)) or lost_a_rank(error_file(job.run_dir, rank).read_text())
    ):
        rank = killed[0]
    if rank is None:
        return f"see {job.log}"
    log = str(job.log).replace("_0_log.out", f"_{rank}_log.out")
    error = error_file(job.run_dir, rank)
    return f"rank {rank}{ends.get(rank, '')}; {log}" + (f"\n{error.read_text()}" if error.exists() else "")


def lost_a_rank(error: str) -> bool:
    """Whether a rank failed only because another one was gone."""
    return bool(re.search("Connection (reset|closed) by peer|Broken pipe|gradients are averaged, has ended", error))


def ends_of_ranks(text: str) -> dict[int, str]:
    """Rank -> ` on n2: Killed`, in the order in which srun reports: `srun: error: n2: tasks 2-3: Killed`."""
    ends: dict[int, str] = {}
    for node, ranks, what in re.findall(r"srun: error: (\S+): tasks? ([\d,-]+): (.*)", text):
        for rank in sorted(parse_core_list(ranks)):
            ends.setdefault(rank, f" on {node}: {what}")
    return ends


def offer_to_cancel(jobs: list[str]) -> int:
    """After Ctrl-C in a waiting launcher: on a terminal, ask whether to cancel the jobs; returns the exit code."""
    names = " ".join(jobs)
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            if input(f"\nCancel job {names}? [y/N] ").strip().lower() in ("y", "yes"):
                slurm_output("scancel", *jobs)
                print(f"cancelled: {names}")
                return INTERRUPTED
    print(f"left in the queue: {names} (scancel {names} ends them)", flush=True)
    return INTERRUPTED


class FollowedFile:
    """A log file that grows, shown on standard output."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def print_new_lines(self) -> None:
        """Print what was added since the last call."""
        with contextlib.suppress(OSError), open_for_reading(self.path) as file:
            file.seek(self.position)
            added = file.read()
            self.position += len(added)
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()
