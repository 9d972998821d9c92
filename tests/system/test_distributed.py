"""Two processes compute what one computes."""

import math
import os
import subprocess
import time
from datetime import timedelta

import pytest
import torch

from tests.support.entry_points import PROJECT, command, environment, run
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.system import distributed
from txl.system.world import World, columns_of


@pytest.mark.parametrize("batch_size, world_size", [(8, 1), (8, 3), (16, 5), (2, 4)])
def test_columns_are_dealt_completely_and_evenly(batch_size, world_size):
    parts = [columns_of(rank, world_size, batch_size) for rank in range(world_size)]
    assert [column for part in parts for column in part] == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch_size, world_size, first", [(8, 3, 2), (9, 2, 1), (8, 2, 6), (6, 1, 2)])
def test_the_first_rank_gets_the_columns_it_was_given(batch_size, world_size, first):
    parts = [columns_of(rank, world_size, batch_size, first) for rank in range(world_size)]
    assert [column for part in parts for column in part] == list(range(batch_size))
    assert world_size == 1 or len(parts[0]) == first
    assert len({len(part) for part in parts[1:]}) <= 1


@pytest.mark.parametrize("hang_minutes, timeout, heartbeat", [(5, 30, 480), (0.5, 30, 480), (20, 120, 1200)])
def test_torch_s_own_time_limits_come_after_the_hang_watch_s(hang_minutes, timeout, heartbeat, monkeypatch):
    given = {}
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **how: given.update(how, kind=backend))
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "0")  # the user's own
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "TXL_LOOPBACK"):
        monkeypatch.setenv(name, "")  # is put back at the end
        monkeypatch.delenv(name)
    distributed.init_process_group(World(rank=0, world_size=2), torch.device("cuda"), hang_minutes)
    assert given["kind"] == "cpu:gloo,cuda:nccl" and given["timeout"] == timedelta(minutes=timeout)
    assert os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == str(heartbeat)
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3" and os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "0"


def test_two_processes_equal_one_on_the_same_global_batch(tmp_path):
    data = write_corpus(tmp_path / "text")
    shared = [*data, *TINY_RUN, "train.max_step=20", "valid.interval=10", "valid.batch_size=3", "precision=fp64"]
    shared += ["model.dropout=0", "train.roll=true", "train.ext_len=2"]
    one, two, four, uneven = (tmp_path / name for name in ("one", "two", "accumulated", "uneven"))
    train_here(*shared, f"run_dir={one}")
    done = run("train.py", *shared, f"run_dir={two}", "gpus=2", cwd=tmp_path)
    assert done.stderr == ""  # nor does any library speak between our lines
    train_here(*shared, f"run_dir={four}", "train.micro_batch_size=2")
    # 2 of 8 sequences, and the other process' 6 in two forward passes.
    shares = ["gpus=2", "train.first_rank_batch_size=2", "train.micro_batch_size=3"]
    run("train.py", *shared, f"run_dir={uneven}", *shares, cwd=tmp_path)
    for other in (two, four, uneven):
        for kind in ("train", "valid", "test"):
            mine, theirs = metrics(one, kind), metrics(other, kind)
            assert [r["step"] for r in mine] == [r["step"] for r in theirs]
            for a, b in zip(mine, theirs, strict=True):
                assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
    assert len(metrics(two)) == 20


def test_two_processes_equal_one_with_a_sampled_softmax_and_sparse_gradients(tmp_path):
    """... whose exact loss, that of validation, falls."""
    data = write_corpus(tmp_path / "text")
    shared = [*data, *TINY_RUN, "train.max_step=30", "valid.interval=10", "precision=fp64", "model.dropout=0"]
    shared += ["optimizer.lr=0.01", "model.tie_weight=false", "train.sampled_softmax=8", "train.micro_batch_size=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(*shared, f"run_dir={one}")
    run("train.py", *shared, f"run_dir={two}", "gpus=2", "train.first_rank_batch_size=2", cwd=tmp_path)
    for kind in ("train", "valid", "test"):
        mine, theirs = metrics(one, kind), metrics(two, kind)
        assert len(mine) == len(theirs) > 0
        for a, b in zip(mine, theirs, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)
    assert [r["grad_norm"] for r in metrics(two)] == pytest.approx([r["grad_norm"] for r in metrics(one)], rel=1e-9)
    first, second, third = (record["loss"] for record in metrics(two, "valid"))
    assert first > second > third and third < math.log(18) - 0.3  # 18 characters


def test_a_rank_that_raises_takes_the_others_with_it(tmp_path):
    """... within ten seconds, and its traceback is the last thing on the console."""
    data = write_corpus(tmp_path / "text")
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import txl.train.trainer as t\n"
        "    def broken(self): raise RuntimeError('boom on rank 1')\n"
        "    t.Trainer.step = broken\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        command("train.py", *data, *TINY_RUN, "gpus=2", f"run_dir={tmp_path}/run", "train.max_step=1000000"),
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}:{PROJECT}"),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: boom on rank 1"), done.stderr[-2000:]
    assert time.monotonic() - began < 60
