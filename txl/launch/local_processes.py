"""Start the ranks on this machine, pass signals on, and end them all when one fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

from txl.files import PROJECT
from txl.launch.local_rank import LAUNCHER_PID
from txl.launch.run_folder import error_file, first_failed_rank
from txl.system.process_exit import DIVERGED, INTERRUPTED, MISSED_TARGET, PREEMPTED, TERMINATED, stop_signals_held
from txl.system.world import LOOPBACK

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# Exit codes with which all ranks end together: 0, a missed target, a training that diverged, a signal after saving.
STOPPED = (0, MISSED_TARGET, DIVERGED, INTERRUPTED, PREEMPTED, TERMINATED)


def run_local_ranks(folder: Path, size: int, lock: IO[str] | None = None) -> int:
    """Start `python -m txl.launch.local_rank FOLDER` once per rank, pass signals on, and end all ranks when one fails.

    Args:
        folder: What the ranks read: config.yaml, and what was prepared. Their logs go there, too.
        size: How many ranks to start.
        lock: The run folder's lock, which the ranks hold as well, so that it lasts as long as any of them.

    Returns:
        The highest exit code of the ranks, or 1 if one failed.
    """
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), LOOPBACK: "1"}
    if sys.platform == "linux":  # the name of the loopback interface; without it both listen on all interfaces
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            shared[name] = os.environ.get(name, "lo")
    # Without this every rank prints a note about find_unused_parameters (trainer.py). Errors are still shown.
    shared["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
    shared[LAUNCHER_PID] = str(os.getpid())
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        again = number in (signal.SIGINT, signal.SIGTERM) and number in asked  # the second time: do not wait
        asked.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else number)

    with stop_signals_held():
        ranks += [start_rank(rank, folder, shared, lock) for rank in range(size)]
        before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return wait_for_ranks(ranks, folder, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_rank(rank: int, folder: Path, shared: dict[str, str], lock: IO[str] | None) -> subprocess.Popen[bytes]:
    """Start one rank.

    Args:
        rank: Its number.
        folder: What it reads, and where its log goes.
        shared: Environment variables that all ranks get.
        lock: An open file that it inherits.
    """
    error_file(folder, rank).unlink(missing_ok=True)
    # Rank 0 has the console; what the others print goes to their logs.
    output = None if rank == 0 else open(folder / "logs" / f"rank_{rank}.log", "a")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, "-m", "txl.launch.local_rank", str(folder)],
        env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdout=output,
        stderr=output,
        pass_fds=[lock.fileno()] if lock else [],
        start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
    )


def wait_for_ranks(ranks: list[subprocess.Popen[bytes]], folder: Path, asked: list[int]) -> int:
    """Wait for all ranks. If one fails, the others are killed, and its traceback is the last thing printed.

    Args:
        ranks: The processes, by rank.
        folder: Where their logs are.
        asked: Signals that were passed on. Ranks that do not handle them yet are killed by them.

    Returns:
        The exit code of the run.
    """
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code is not None and code not in STOPPED]
        if failed:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
            if asked and (max(map(asked.count, asked)) > 1 or {128 + asked[0], -asked[0]} & set(codes)):
                print("stopped before it could save: resume=auto continues from the checkpoint before", file=sys.stderr)
                return 128 + asked[0]
            # A killed rank wrote no traceback; those of the other ranks follow from its end.
            killed = [rank for rank in failed if (codes[rank] or 0) < 0]
            rank = killed[0] if killed else first_failed_rank(folder)
            rank = failed[0] if rank is None else rank
            error = error_file(folder, rank)
            detail = error.read_text() if error.exists() else f"it was killed (exit code {codes[rank]})"
            log = folder / "logs" / f"rank_{rank}.log"
            print(f"rank {rank} failed, the others were stopped; {log}\n{detail}", file=sys.stderr)
            return 1
        if None not in codes:
            code = max(code or 0 for code in codes)
            return 128 + asked[0] if asked and code in (INTERRUPTED, TERMINATED) else code
        time.sleep(0.1)


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
