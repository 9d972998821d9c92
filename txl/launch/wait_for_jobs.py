"""Jobs that were submitted: what SLURM says about them, and waiting until they have ended."""

import contextlib
import re
import sys
import time
from pathlib import Path

from txl.launch.job_state import ENDED, Submitted, accounting_says, ask, controller_says
from txl.launch.run_folder import first_failed_rank
from txl.system.hardware import parse_core_list

POLL_SECONDS = 1.0


LOOKS = 3  # that must find a job at its end


# --------------------------------------------------------------------------- waiting


def wait(jobs: list[Submitted]) -> int:
    """Follow rank 0's log, or of several jobs their states, to the end; returns the worst exit code."""
    states: dict[str, str] = {}
    codes: dict[str, int] = {}
    seen: dict[str, int] = {}
    tail = Tail(jobs[0].log) if len(jobs) == 1 else None
    try:
        while len(codes) < len(jobs):
            for one in jobs:
                if one.job not in codes:
                    watch(one, states, codes, seen, quiet=tail is not None)
            if tail:
                tail.show()
            if len(codes) < len(jobs):
                time.sleep(POLL_SECONDS * max(1, (len(jobs) - len(codes)) / 8))  # the controller has others to serve
    except KeyboardInterrupt:
        return interrupted([one.job for one in jobs if one.job not in codes])
    if tail:
        tail.show()
    for one in jobs:
        conclude(one, states[one.job], codes[one.job])
    return max(codes.values())


def watch(one: Submitted, states: dict[str, str], codes: dict[str, int], seen: dict[str, int], quiet: bool) -> None:
    """Ask once for a job; notes its state, and its exit code when it has ended."""
    said = controller_says(one.job) or accounting_says(one.job)
    state = said.get("JobState")
    if state is None and ask("scontrol", "ping") is None:
        return  # the controller is away: it will be back
    if state is None:
        done = (one.run_dir / "summary.json").exists()
        state, said = ("COMPLETED", {}) if done else ("FAILED", {"ExitCode": "1:0"})
    if state != states.get(one.job):
        states[one.job] = state
        if not quiet or state != "RUNNING":
            reason = f" ({said['Reason']})" if said.get("Reason", "None") != "None" else ""
            print(f"job {one.job} {state}{reason}", flush=True)
    seen[one.job] = seen.get(one.job, 0) + 1 if state in ENDED else 0
    # A job that SLURM is about to requeue may show another end for a moment.
    if state == "COMPLETED" or seen[one.job] == LOOKS:
        status, _, number = said.get("ExitCode", "1:0").partition(":")
        code = int(status) or (128 + int(number or 0) if int(number or 0) else 0)
        codes[one.job] = 0 if state == "COMPLETED" else code or 1


def conclude(one: Submitted, state: str, code: int) -> None:
    if state == "COMPLETED":
        return
    if not one.log.exists():
        why = "it never started"
    elif state in ("CANCELLED", "TIMEOUT"):  # no rank's fault, though SLURM killed them
        why = f"see {one.log}"
    else:
        why = blame(one)
    print(f"job {one.job} {state} (exit code {code}): {why}", file=sys.stderr, flush=True)


def blame(one: Submitted) -> str:
    """The rank that failed first, its log, and what it said."""
    text = one.log.read_text(errors="replace")
    ends = ends_of_ranks(text[text.rfind("Starting with JobEnvironment") :])
    rank = first_failed_rank(one.run_dir)
    if ends and (rank is None or not (one.run_dir / "logs" / f"rank_{next(iter(ends))}.error").exists()):
        rank = next(iter(ends))  # killed without a word
    if rank is None:
        return f"see {one.log}"
    log = str(one.log).replace("_0_log.out", f"_{rank}_log.out")
    detail = one.run_dir / "logs" / f"rank_{rank}.error"
    return f"rank {rank}{ends.get(rank, '')}; {log}" + (f"\n{detail.read_text()}" if detail.exists() else "")


def ends_of_ranks(text: str) -> dict[int, str]:
    """Rank -> ` on n2: Killed`, in the order in which srun reports: `srun: error: n2: tasks 2-3: Killed`."""
    ends: dict[int, str] = {}
    for node, ranks, what in re.findall(r"srun: error: (\S+): tasks? ([\d,-]+): (.*)", text):
        for rank in sorted(parse_core_list(ranks)):
            ends.setdefault(rank, f" on {node}: {what}")
    return ends


def interrupted(jobs: list[str]) -> int:
    """Ctrl-C in a waiting launcher."""
    names = " ".join(jobs)
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            if input(f"\nCancel job {names}? [y/N] ").strip().lower() in ("y", "yes"):
                ask("scancel", *jobs)
                print(f"cancelled: {names}")
                return 130
    print(f"left in the queue: {names} (scancel {names} ends them)", flush=True)
    return 130


class Tail:
    """What was added to a file since the last look."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def show(self) -> None:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            file.seek(self.position)
            added = file.read()
            self.position += len(added)
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()
