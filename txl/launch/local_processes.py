"""Start the ranks on this machine, pass signals on, and end them all when one fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from txl.files import PROJECT
from txl.launch.run_folder import first_to_fail

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


STOPPED = (0, 3, 130, 140, 143)  # a missed target; a signal, after saving: all ranks end like this together


def run_local_ranks(module: str, arguments: list[str], size: int, run_dir: Path, lock: IO | None = None) -> int:
    """Start `python -m MODULE ARGUMENTS` once per rank, pass signals on, and end them all when one fails."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # No word from each rank about find_unused_parameters (trainer.py); errors are said all the same.
    shared["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank in range(size):
        (run_dir / "logs" / f"rank_{rank}.error").unlink(missing_ok=True)
        # Rank 0 speaks for all; what the others print goes to their logs.
        output = None if rank == 0 else open(run_dir / "logs" / f"rank_{rank}.log", "a")  # noqa: SIM115
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()] if lock else [],
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
            )
        )

    asked: list[int] = []

    def forward(number, frame):
        again = number == signal.SIGINT in asked  # a second Ctrl-C: now
        asked.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return watch(ranks, run_dir, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(ranks: list[subprocess.Popen], run_dir: Path, asked: list[int]) -> int:
    """Wait for all ranks; a failed one takes the others with it, and its traceback is the last thing printed.

    `asked`: signals that were passed on. They may meet some ranks before they listen; the others fail then.
    """
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code is not None and code not in STOPPED]
        if failed:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
            if asked and (asked.count(signal.SIGINT) > 1 or {128 + asked[0], -asked[0]} & set(codes)):
                print("stopped before it could save: resume=auto goes on from the checkpoint before", file=sys.stderr)
                return 128 + asked[0]
            killed = [rank for rank in failed if codes[rank] < 0]  # without a word; what the others say follows from it
            rank = killed[0] if killed else first_to_fail(run_dir)
            rank = failed[0] if rank is None else rank
            error = run_dir / "logs" / f"rank_{rank}.error"
            detail = error.read_text() if error.exists() else f"it was killed (exit code {codes[rank]})"
            log = run_dir / "logs" / f"rank_{rank}.log"
            print(f"rank {rank} failed, the others were stopped; {log}\n{detail}", file=sys.stderr)
            return 1
        if None not in codes:
            return max(codes)
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
