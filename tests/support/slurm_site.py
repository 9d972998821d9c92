"""Training on the private SLURM cluster as a user does it, disturbing it, and noting what became of it."""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.entry_points import PROJECT, command
from tests.support.made_data import write_corpus
from tests.support.slurm_cluster import PATH
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.system.slurm_jobs import SubmittedJob

HOLD = 'cluster.sbatch=["--hold"]'
TWO_NODES = ["cluster=slurm", "cluster.minutes=5", "nodes=2", "gpus=1"]
TWO_BY_TWO = ["cluster=slurm", "cluster.minutes=5", "nodes=2", "gpus=2"]

# What goes wrong in a job is put into its ranks from outside: TXL_FAULT="raise:3:10" (rank 3, step 10), "hang:0:3", or
# "slow:0.1" (seconds per step of the first attempt, so that there is time to disturb it).
FAULTS = """
import importlib.abc, importlib.util, os, sys, time

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "txl.train.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), disturb(module.Trainer))
        return spec

def disturb(Trainer):
    kind, *values = os.environ["TXL_FAULT"].split(":")
    step, rank = Trainer.step, int(os.environ.get("SLURM_PROCID", 0))
    def disturbed(self):
        step(self)
        if kind == "slow":
            if "SLURM_RESTART_COUNT" not in os.environ:
                time.sleep(float(values[0]))
        elif (rank, self.state.step) == (int(values[0]), int(values[1])):
            if kind == "raise":
                raise RuntimeError("boom")
            while True:
                time.sleep(1)
    Trainer.step = disturbed

if os.environ.get("TXL_FAULT"):
    sys.meta_path.insert(0, Hook())
"""


class Site:
    """A folder of runs, a corpus, and a cluster to train on."""

    def __init__(self, cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.data = write_corpus(folder / "text")
        self.shared = [*self.data, *TINY_RUN, f"runs={folder}/runs"]
        (folder / "sitecustomize.py").write_text(FAULTS)

    def environment(self, fault: str = "", sacct: bool = False) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        mine = {"PYTHONPATH": path, "TXL_FAULT": fault, "OMP_NUM_THREADS": "1"}
        return (self.cluster.with_sacct() if sacct else self.cluster.environment) | mine

    def start(
        self,
        *overrides,
        script: str = "train.py",
        fault: str = "",
        sacct: bool = False,
        within: tuple = (),
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen:
        flags = [one for one in overrides if one == "-m"]
        return subprocess.Popen(
            [*within, *command(script, *flags, *self.shared, *(one for one in overrides if one != "-m"))],
            cwd=self.folder,
            env=self.environment(fault, sacct),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def train(self, *overrides, expect: int = 0, **how) -> str:
        """Run train.py, or another `script`, to its end; returns what it printed."""
        process = self.start(*overrides, **how)
        out, err = process.communicate(timeout=150)
        assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
        return out + err

    def status(self, folder: Path, sacct: bool = False) -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "txl.launch", "status", str(folder)],
            cwd=PROJECT,
            env=self.environment(sacct=sacct),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]

    @staticmethod
    def log_of(run_dir: Path, rank: int) -> str:
        """Of a rank's console, relative to the run folder."""
        return f"slurm/{SubmittedJob.of(run_dir).job}_{rank}_log.out"


@dataclass
class Faults:
    """Rows of the table of faults, and single figures."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def note(self, what: str, state: str, code: int, message: str, seconds: float | str = "") -> None:
        seconds = seconds if isinstance(seconds, str) else f"{seconds:.1f} s"
        self.rows.append((what, state, str(code), f"`{message}`" if message else "", seconds))

    def measure(self, what: str, value: str) -> None:
        self.figures.append((what, value))

    def write(self, path: Path) -> None:
        environment = os.environ | {"PATH": PATH}
        slurm = subprocess.run(["slurmctld", "-V"], env=environment, capture_output=True, text=True).stdout.strip()
        lines = len((PROJECT / "txl" / "launch" / "start.py").read_text().splitlines())
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {slurm}"
        self.measure("lines of txl/launch/start.py", str(lines))
        head = ["what was done", "job's state", "exit code", "message", "took"]
        text = [
            "# Faults that were tried",
            "",
            f"Written by `make faults` (`tests/launch/test_faults.py`), {time.strftime('%Y-%m-%d')}: a real SLURM on",
            f"one machine ({machine}), small model, 2 nodes with 1 or 2 tasks each, a checkpoint",
            "every 7 steps. The exit code is that of `train.py`, which waits for a job if there is one; the message is",
            "what it says in the end. Where the job came back, its weights, optimizer, memories and every loss are",
            "bitwise those of the undisturbed run, with no step twice and none missing; `took` is then the time until",
            "it ran again.",
            "",
            *table([head, *self.rows]),
            "",
            *table([["measured", ""], *self.figures]),
        ]
        path.write_text("\n".join(text) + "\n")


def table(rows: list) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


# --------------------------------------------------------------------------- looking


def job_of(output: str) -> str:
    return re.search(r"job (\S+) submitted", output)[1]


def submitted(run_dir: Path, seconds: float = 60) -> str:
    """The job of a run folder, once it has one."""
    wait_until(lambda: SubmittedJob.of(run_dir), f"a job of {run_dir}", seconds)
    return SubmittedJob.of(run_dir).job


def wait_until(condition, what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def wait_for_step(run_dir: Path, step: int) -> None:
    file = run_dir / "metrics.jsonl"
    try:
        wait_until(lambda: file.exists() and len(metrics(run_dir)) >= step, f"step {step} in {run_dir}")
    except AssertionError as error:
        logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(run_dir.glob("slurm/*_log.out"))]
        raise AssertionError("\n".join([str(error), *logs])) from None


def attempts(run_dir: Path) -> list[dict]:
    """One entry for every start of a job."""
    return [json.loads(line) for line in (run_dir / "slurm/attempts.jsonl").read_text().splitlines()]


def rank_processes(cluster, job: str) -> dict[int, int]:
    """Rank -> process of a job's ranks."""
    found = {}
    for pid in cluster.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            environ = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            variables = dict(entry.split("=", 1) for entry in environ if "=" in entry)
            is_python = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode())
            if is_python and variables.get("SLURM_JOB_ID") == job and "SLURM_PROCID" in variables:
                found[int(variables["SLURM_PROCID"])] = pid
    return found
