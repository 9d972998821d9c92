"""Ctrl-C and SIGTERM at any instant of a start, and launchers that are killed: exit codes, one line, no orphans."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.entry_points import children_of, command, environment, is_running
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.launch.local_processes import wait_for_ranks

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def start(folder: Path, script: str, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(script, *overrides),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def endless_run(folder: Path) -> list[str]:
    return [*write_corpus(folder / "text"), *TINY_RUN, "train.max_step=1000000", f"run_dir={folder}/run"]


def handles_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM: Python itself has started."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


# Seeds, and how long a run goes on at most before the signal: while it starts, and during its first seconds.
INSTANTS = [(seed, 1.0) for seed in range(4)]
INSTANTS += [pytest.param(seed, 8.0, marks=pytest.mark.slow) for seed in range(100, 140)]


@pytest.mark.parametrize("seed, longest", INSTANTS)
def test_a_signal_at_any_instant_ends_a_run_with_its_exit_code_and_no_traceback(seed, longest, tmp_path):
    """One or two signals: the first one decides."""
    rng = random.Random(seed)
    process = start(tmp_path, "train.py", *endless_run(tmp_path), *rng.choice([[], ["gpus=2"]]))
    wait_until(lambda: handles_signals(process.pid))
    first, second = rng.choice(SIGNALS), rng.choice([None, *SIGNALS])
    time.sleep(rng.uniform(0, longest))
    process.send_signal(first)
    if second:
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(second)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + first, (first, second, output)
    assert "Traceback" not in output and "Exception ignored" not in output, output


def test_a_rank_that_ended_before_training_is_not_waited_for_by_the_others(tmp_path, capsys):
    """A rank that waits in torch for another one does not run its signal handlers."""
    early = "from txl.system.process_exit import end_on_stop_signals; end_on_stop_signals(quiet=True)"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = "{}; import time; print(flush=True); time.sleep(60)"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code.format(rank)], env=environment(), stdout=subprocess.PIPE)
        for rank in (deaf, early)
    ]
    for rank in ranks:
        rank.stdout.readline()
        rank.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert wait_for_ranks(ranks, tmp_path, asked=[signal.SIGTERM]) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    assert capsys.readouterr().err.count("\n") == 1


ORPHANS = {
    "training": ("train.py", []),
    "preflight": ("train.py", ["preflight=true"]),
    "benchmark": ("benchmark.py", ["suite=train", "model=small", "hardware=cpu", "benchmark.processes=[2]"]),
    "evaluation": ("evaluate.py", ["split=valid", "gpus=2", "hardware=cpu"]),
}


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("preflight", "benchmark", "evaluation")]


@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["training", *SLOW_KINDS])
def test_ranks_end_with_a_launcher_that_is_killed_at_their_start(kind, delay, tmp_path):
    script, options = ORPHANS[kind]
    run = [*endless_run(tmp_path), "gpus=2"] if script == "train.py" else []
    if kind == "evaluation":
        train_here(*endless_run(tmp_path), "train.max_step=1", "scheduler=constant")
        run = [f"checkpoint={tmp_path}/run"]
    process = start(tmp_path, script, *run, *options)
    try:
        wait_until(lambda: len(children_of(process.pid)) == 2)
        ranks = children_of(process.pid)
        time.sleep(delay)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # returns when no rank has the console any more
    wait_until(lambda: not any(map(is_running, ranks)), 30)
