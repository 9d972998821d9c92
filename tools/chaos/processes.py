"""Runs of `txl train` as forks of this process, which has imported everything already.

A start costs a tenth of a second in place of five. All else is as for a user: the command line is composed by Hydra,
the launcher starts ranks, passes signals on and ends them, and everything may be killed.
"""

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.chaos.shim import Fault, Shim
from txl.cli.hydra_main import exit_code_of
from txl.cli.train import main
from txl.config.schema import RunConfig
from txl.launch import rank
from txl.launch.local_rank import end_with_the_launcher
from txl.launch.start import Launcher
from txl.system.process_exit import end_on_stop_signals

ENDS_WITHIN = 60.0  # seconds: all processes of a run whose launcher was killed
LONGEST_RUN = 1800.0  # seconds: on a busy machine
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Kill:
    """A signal at an instant.

    Args:
        after: Seconds after the run's start.
        number: The signal.
        whom: launcher, or `rank N`.
    """

    after: float
    number: int = signal.SIGKILL
    whom: str = "launcher"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int  # negative: killed by that signal
    seconds: float
    operations: int  # on files of the run folder
    output: str  # standard output and error
    orphans: int  # processes that were still there ENDS_WITHIN after the launcher's end


class ForkedRuns:
    """Starts runs. One at a time."""

    def __init__(self, shim: Shim, output: Path):
        """`output`: a file for what the runs print."""
        self.shim, self.output = shim, output
        self.draws = True  # whether finished runs draw their loss curve
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process

    def run(
        self,
        arguments: list[str] | RunConfig,
        folder: Path,
        fault: Fault | None = None,
        kill: Kill | None = None,
        log: Path | None = None,
        limit: float = LONGEST_RUN,
    ) -> Outcome:
        """Start a run and wait until all its processes have ended.

        Args:
            arguments: The command line of `txl train`; or what Hydra makes of it, which saves a third of the time.
            folder: Where file operations count.
            fault: What happens at one of them.
            kill: A signal that is sent to one of the processes.
            log: A file for the record of all operations.
            limit: Seconds after which a run that does not end is killed; its code is then -9.
        """
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._be_the_launcher(arguments, folder, fault, log)
        if kill is not None:
            time.sleep(max(0.0, kill.after - (time.monotonic() - began)))
            _send(pid, kill)
        code = _wait_for(pid, limit)
        seconds = time.monotonic() - began
        orphans = _wait_for_orphans()
        return Outcome(code, seconds, self.shim.count(), self.output.read_text(errors="replace"), orphans)

    def _be_the_launcher(
        self, arguments: list[str] | RunConfig, folder: Path, fault: Fault | None, log: Path | None
    ) -> None:
        code = 70
        try:
            out = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC) if log else -1
            end_on_stop_signals()
            self.shim.arm(folder, fault or Fault(), descriptor)
            _fork_ranks()
            if not self.draws:
                setattr(rank, "draw_loss_curve", lambda run_dir: None)  # noqa: B010
            code = _train(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _train(arguments: list[str] | RunConfig) -> int:
    if isinstance(arguments, list):
        return main(arguments)
    return exit_code_of(lambda: Launcher().start(arguments))


def warm_up() -> None:
    """Import what runs import."""
    import hydra  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch._inductor  # noqa: F401 (every optimizer imports the compiler)
    import torch.distributed  # noqa: F401

    import txl.bench.train_step
    import txl.launch.rank
    import txl.optim.muon
    import txl.report.loss_curve
    import txl.train.trainer  # noqa: F401


# --------------------------------------------------------------------------- ranks as forks


class _ForkedRank:
    """What the launcher needs of subprocess.Popen, for a rank that is a fork of the launcher."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: Any = None, stderr: Any = None, **_: Any):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)
            end_on_stop_signals(quiet=True)
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
            random.seed()
            end_with_the_launcher()
            code = rank.main(Path(command[-1]))
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _fork_ranks() -> None:
    """In this process, the launcher's subprocess.Popen of a rank becomes a fork."""
    original: Callable[..., Any] = subprocess.Popen

    def start(command: Any, *args: Any, **options: Any) -> Any:
        if isinstance(command, list) and "txl.launch.local_rank" in command:
            return _ForkedRank(command, **options)
        return original(command, *args, **options)

    import txl.launch.local_processes as local_processes

    class Forking:
        """subprocess, as far as local_processes uses it."""

        Popen = staticmethod(start)

    setattr(local_processes, "subprocess", Forking)  # noqa: B010


# --------------------------------------------------------------------------- processes and signals


def children_of(pid: int) -> list[int]:
    """The child processes, in the order of their start."""
    try:
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _send(pid: int, kill: Kill) -> None:
    target = pid
    if kill.whom != "launcher":
        ranks = children_of(pid)
        rank = int(kill.whom.removeprefix("rank "))
        target = ranks[rank] if rank < len(ranks) else pid  # not started yet
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, kill.number)


def _wait_for(pid: int, limit: float) -> int:
    """The exit code of a child. One that does not end within `limit` seconds is killed."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


def _wait_for_orphans() -> int:
    """Wait for processes whose launcher is gone; those that stay are killed. Returns how many had to be."""
    deadline = time.monotonic() + ENDS_WITHIN
    while children := children_of(os.getpid()):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        if time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return len(children)
        time.sleep(0.005)
    return 0
