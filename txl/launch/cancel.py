"""Stop runs: `txl cancel FOLDER...`. A training saves a checkpoint first, so that resume=auto continues it."""

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

from txl.errors import error_line
from txl.launch.status import no_run_below, started_runs_below
from txl.system.command_parser import CommandParser
from txl.system.run_lock import is_locked, lock_owner
from txl.system.slurm_jobs import ENDED, SubmittedJob, job_state, slurm_output


def main(arguments: list[str] | None = None) -> int:
    """Cancel the runs of `cancel FOLDER...`; returns the exit code."""
    parser = CommandParser(prog="txl cancel", description="Stop runs; a training saves first.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of runs")
    code = 0
    for folder in parser.parse_args(arguments).folders:
        runs = started_runs_below(folder)
        if not runs:
            print(error_line(no_run_below(folder)), file=sys.stderr)
            code = 2
        for run in runs:
            problem = cancel_run(run)
            if problem:
                print(error_line(f"{run}: {problem}"), file=sys.stderr)
                code = 1
    return code


def cancel_run(run: Path) -> str | None:
    """Stop a run's SLURM job or its process on this machine; returns what went wrong, or None."""
    submitted = SubmittedJob.of(run)
    if submitted is not None:
        state = job_state(submitted.job)
        if state is None or state in ENDED:
            print(f"{run}: job {submitted.job} has ended already")
            return None
        if slurm_output("scancel", submitted.job) is None:
            return f"scancel {submitted.job} failed"
        print(f"{run}: job {submitted.job} was {state}, cancelled")
        return None
    if not is_locked(run):
        print(f"{run}: not running")
        return None
    owner = re.fullmatch(r"process (\d+) on (.+)", lock_owner(run))
    if owner is None or owner[2] != socket.gethostname():
        return f"runs as {lock_owner(run)}; cancel it on that machine"
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(owner[1]), signal.SIGTERM)
    print(f"{run}: process {owner[1]} was asked to save and stop")
    return None
