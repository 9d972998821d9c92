"""A run that hangs is ended, and the rank that the others wait for is named."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.support.entry_points import PROJECT, command, environment
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.system.hang_watch import Reported, describe_laggards
from txl.system.world import World

HANG = """
import os, time
if os.environ.get("RANK") == "1":
    import txl.train.trainer as t
    step = t.Trainer.step
    def hanging(self):
        step(self)
        while self.state.step >= 3:
            time.sleep(1)
    t.Trainer.step = hanging
"""


def start(tmp_path, *overrides):
    (tmp_path / "sitecustomize.py").write_text(HANG)
    return subprocess.Popen(
        command("train.py", *write_corpus(tmp_path / "text"), *TINY_RUN, *overrides),
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{PROJECT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_rank_that_hangs_is_named_and_every_stack_is_written(tmp_path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, "gpus=2", "train.max_step=1000", "cluster.hang_minutes=0.1", f"run_dir={run_dir}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no rank made progress for 0." in err and "rank 1 did not arrive" in err
    for rank in (0, 1):
        assert "Python stacks of rank" in (run_dir / "logs" / f"rank_{rank}.log").read_text()
    assert "in hanging" in (run_dir / "logs" / "rank_1.log").read_text()


def test_a_second_signal_ends_a_run_that_hangs(tmp_path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, "gpus=2", "train.max_step=1000", f"run_dir={run_dir}")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not ((run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= 2):
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and "stopped before it could save" in err


@pytest.mark.parametrize(
    "reports, said",
    [
        ({0: Reported(9, 3, True, 1.0), 1: Reported(9, 3, False, 1.0)}, r"rank 1 did not arrive \(3 steps done\)"),
        ({0: Reported(9, 3, False, 1.0), 1: Reported(7, 2, False, 1.0)}, r"rank 1 did not arrive \(2 steps done\)"),
        (
            {0: Reported(9, 3, True, 1.0), 1: Reported(9, 3, True, 200.0)},
            "the process of rank 1 is stopped .*",
        ),
        ({0: Reported(9, 3, True, 1.0)}, "rank 1 never reported"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(reports, said):
    assert re.fullmatch(said, describe_laggards(reports, World(0, 2), 300.0))
