"""The trainings of a search's trials: a process on this machine each, or a job of SLURM each."""

import contextlib
import ctypes
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from txl.config.schema import RunConfig
from txl.files import PROJECT
from txl.launch.cancel import cancel_run
from txl.launch.study import Search
from txl.launch.wait_for_jobs import Watched, describe_failure
from txl.system.hardware import visible_gpus
from txl.system.run_lock import is_locked

POLL_SECONDS = 0.5
SAVING_SECONDS = 120.0  # that a trial which was stopped may take to save


class TrialTraining(Protocol):
    """A training that was started."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits."""

    def stop(self) -> None:
        """Ask it to save and end; does not wait for that."""

    def last_words(self) -> str:
        """The last line that it printed, which says why it failed."""


def train_command(search: Search, number: int, values: list[str]) -> list[str]:
    """The arguments of `txl train` for a trial; the same command continues it.

    Args:
        search: The search.
        number: Of the trial.
        values: What Optuna proposed, as overrides.
    """
    return [*search.overrides, *values, f"run_dir={search.folder_of(number)}", "resume=auto"]


def note_command(search: Search, number: int, values: list[str]) -> None:
    """Write the command of a trial into its log."""
    from txl.launch.next_commands import own_command

    with open(search.log_of(number), "a") as log:
        log.write(f"$ {own_command()} train {shlex.join(train_command(search, number, values))}\n")


# --------------------------------------------------------------------------- on this machine


class LocalTraining:
    """A training in a process of its own."""

    def __init__(self, search: Search, number: int, values: list[str], slot: int):
        """Start it.

        Args:
            search: The search.
            number: Of the trial.
            values: What Optuna proposed, as overrides.
            slot: Which of the parallel places it has, and so which GPU.
        """
        self._log = search.log_of(number)
        wait_until_free(search.folder_of(number))
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        gpus = visible_devices()
        if gpus and search.parallel > 1:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        command = [sys.executable, "-m", "txl", "train", *train_command(search, number, values)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=functools.partial(save_if_the_search_dies, os.getpid()),
            )

    def poll(self) -> int | None:
        """See TrialTraining."""
        return self._process.poll()

    def stop(self) -> None:
        """See TrialTraining."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def last_words(self) -> str:
        """See TrialTraining."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ")


def save_if_the_search_dies(search: int) -> None:
    """In a trial's process, before it starts: ask for SIGTERM when the search is gone, however it ended.

    `search`: the search's process. If it ended before this call, the trial does not start.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != search:
        os._exit(1)


def wait_until_free(run_dir: Path) -> None:
    """Wait for a trial of a killed search, which is still saving."""
    deadline = time.monotonic() + SAVING_SECONDS
    while is_locked(run_dir) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def visible_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold, one entry per GPU that this process sees."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(len(visible_gpus()))]


# --------------------------------------------------------------------------- under SLURM


class SlurmTraining:
    """A training that is a job, or an element of a job array."""

    def __init__(self, watched: Watched):
        self._watched = watched

    def poll(self) -> int | None:
        """See TrialTraining."""
        if self._watched.exit_code is None:
            self._watched.poll(quiet=True)
        return self._watched.exit_code

    def stop(self) -> None:
        """See TrialTraining."""
        self._watched.silent = True
        cancel_run(self._watched.job.run_dir)

    def last_words(self) -> str:
        """See TrialTraining."""
        if not self._watched.job.log.exists():
            return "it never started"
        lines = describe_failure(self._watched.job).strip().splitlines()
        return lines[-1].removeprefix("error: ")


class EndedTraining:
    """A training that had reached its end before it was to be started again."""

    def poll(self) -> int | None:
        """See TrialTraining."""
        return 0

    def stop(self) -> None:
        """See TrialTraining. There is nothing to stop."""

    def last_words(self) -> str:
        """See TrialTraining."""
        return "it had ended"


def submit_trainings(search: Search, configs: dict[int, RunConfig]) -> list[TrialTraining]:
    """Submit the trainings of trials, several as one job array; a job that is in the queue already is taken over.

    Args:
        search: The search.
        configs: Their configurations, by the number of the trial.

    Raises:
        ConfigError: SLURM or the data refuse a training.
    """
    from txl.launch.slurm_submit import submit

    new, queued = submit(list(configs.values()), parallel=len(configs) if len(configs) > 1 else None)
    jobs = {job.run_dir.resolve(): job for job in [*new, *queued]}
    found: list[TrialTraining] = []
    for number in configs:
        job = jobs.get(search.folder_of(number).resolve())
        if job is None:
            found.append(EndedTraining())
            continue
        print(f"trial {number} is job {job.job}; its log: {job.log}", flush=True)
        found.append(SlurmTraining(Watched(job)))
    return found
