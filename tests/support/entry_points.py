"""train.py, evaluate.py and benchmark.py as processes, started as a user starts them."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def command(script: str, *overrides: str) -> list[str]:
    return [sys.executable, str(PROJECT / script), *map(str, overrides)]


def environment(**extra: str) -> dict[str, str]:
    """One thread per process: the machine is shared by several at once."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | extra


def run_code(code: str, cwd: Path, timeout: float = 120) -> str:
    """Run a program of Python that can import this checkout; returns the last line that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(PYTHONPATH=str(PROJECT)),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()[-1]


def run(script: str, *overrides: str, cwd: Path, expect: int = 0, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run an entry point as a user would; fails with its output when the exit code is another."""
    done = subprocess.run(
        command(script, *overrides), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, as long as they have not ended."""
    found: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, threads.read_text().split())
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
