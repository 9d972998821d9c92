"""Kill a run at any instant; the next start continues it bit by bit."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.bitwise import assert_bitwise_equal
from tests.support.entry_points import command, environment, run
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from tools.fuzz.files import reseal
from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns
from txl.checkpoint.find import CheckpointError, verify_checkpoint

STEPS = 60


def final_state(run_dir):
    folder = run_dir / "checkpoints" / f"step_{STEPS}"
    return {
        "model": read_checkpoint_file(folder, "model.pt"),
        "optimizer": read_checkpoint_file(folder, "optimizer.pt"),
        "mems": read_memory_columns(folder, range(8)),
        "state": {k: v for k, v in read_checkpoint_file(folder, "state.json").items() if k != "train_seconds"},
    }


def losses(run_dir):
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in metrics(run_dir)]


def run_until_killed(overrides, run_dir, cwd, after_step, number=signal.SIGKILL):
    """Start a run and send the signal once its metrics show a step; returns its exit code."""
    log = open(cwd / "killed.txt", "w")  # noqa: SIM115
    process = subprocess.Popen(
        command("train.py", *overrides), cwd=cwd, env=environment(), stdout=log, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 90
    file = run_dir / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.read_text().count('"train"') >= after_step:
            break
        time.sleep(0.005)
    assert process.poll() is None, (cwd / "killed.txt").read_text()
    os.kill(process.pid, number)
    code = process.wait(timeout=60)
    time.sleep(0.3)  # children of a killed launcher end with it
    return code


# 200 lines are about 5,400 characters: 21 segments an epoch in the rolled case, 84 in the others.
CASES = {
    "mid_epoch_dropout": [],
    "modern_recipe": ["recipe=modern", "train.shuffle_len=40", "model.dropout=0"],
    "across_an_epoch_shuffled_rolled_accumulation_4": [
        "train.shuffle_len=40",
        "train.roll=true",
        "train.batch_size=16",
        "train.micro_batch_size=4",
        "train.tgt_len=32",
    ],
    "three_processes": ["gpus=3", "train.batch_size=6"],
    "two_uneven_processes_sampled_softmax_varlen_rolled": [
        "gpus=2",
        "train.sampled_softmax=8",
        "train.first_rank_batch_size=5",
        "train.micro_batch_size=3",  # 3 and 2, beside 3
        "train.varlen=true",
        "train.roll=true",
        "train.tgt_len=16",
        "train.ext_len=3",
        "model.positions=shaw",
    ],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A case -> its overrides, and the folder of a run that was not disturbed; each case is trained once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_corpus(folder / "text")

    @functools.cache
    def case_and_run(case):
        overrides = [*data, *TINY_RUN, f"train.max_step={STEPS}", *CASES[case]]
        train(*overrides, f"run_dir={folder / case}")
        return overrides, folder / case

    return case_and_run


def train(*overrides):
    """To its end: one rank in this process, several in processes of their own."""
    if any(override.startswith("gpus=") for override in overrides):
        run("train.py", *overrides, cwd=Path.cwd())
    else:
        train_here(*overrides)


SLOW_CASES = {"three_processes"}  # two processes are tried every time


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW_CASES else ()) for case in CASES]
)
def test_a_killed_run_continues_bitwise(case, undisturbed, tmp_path):
    (shared, straight), broken = undisturbed(case), tmp_path / "broken"
    shared = [*shared, "checkpoint.interval=7", f"run_dir={broken}"]
    assert run_until_killed(shared, broken, tmp_path, after_step=20) == -signal.SIGKILL
    train(*shared, "resume=auto")
    assert [step for step, *_ in losses(broken)] == list(range(1, STEPS + 1))  # none twice, none missing
    assert losses(broken) == losses(straight)
    assert_bitwise_equal(final_state(broken), final_state(straight))
    if case.startswith("across_an_epoch"):
        assert final_state(straight)["state"]["stream"]["epoch"] > 2


def test_ctrl_c_saves_and_the_run_continues_bitwise(undisturbed, tmp_path):
    (shared, straight), broken = undisturbed("two_uneven_processes_sampled_softmax_varlen_rolled"), tmp_path / "broken"
    shared = [*shared, f"run_dir={broken}"]  # without an interval: the only checkpoint is that of the signal
    assert run_until_killed(shared, broken, tmp_path, 20, signal.SIGINT) == 130
    assert "resume=auto" in (tmp_path / "killed.txt").read_text()
    train(*shared, "resume=auto")
    assert losses(broken) == losses(straight)
    assert_bitwise_equal(final_state(broken), final_state(straight))


def test_checkpoints_are_written_by_the_clock_as_well(tmp_path):
    data = write_corpus(tmp_path / "text")
    shared = [*data, *TINY_RUN, "train.max_step=150", "checkpoint.save_all=true", "gpus=2"]
    run("train.py", *shared, "checkpoint.minutes=0.005", f"run_dir={tmp_path}/run", cwd=tmp_path)
    steps = sorted(int(path.name.removeprefix("step_")) for path in (tmp_path / "run/checkpoints").glob("step_*"))
    assert steps[-1] == 150 and len(steps) > 2
    assert all(b - a > 1 for a, b in zip(steps[:-2], steps[1:-1], strict=True))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A finished run of 12 steps with checkpoints every 4."""
    folder = tmp_path_factory.mktemp("short")
    shared = [*write_corpus(folder / "text"), *TINY_RUN, "checkpoint.interval=4", "checkpoint.save_all=true"]
    shared += [f"run_dir={folder}/run", "scheduler.max_step=40"]
    train_here(*shared, "train.max_step=12")
    return folder, shared


def test_a_finished_run_is_not_run_again(short_run, capsys):
    folder, shared = short_run
    before = (folder / "run/metrics.jsonl").read_text()
    train_here(*shared, "train.max_step=12", "resume=auto")
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert (folder / "run/metrics.jsonl").read_text() == before


def test_the_advice_after_a_finished_run_continues_it(tmp_path, capsys):
    shared = [*write_corpus(tmp_path / "text"), *TINY_RUN, f"run_dir={tmp_path}/run"]
    train_here(*shared, "train.max_step=6")
    train_here(*shared, "train.max_step=6", "resume=auto")
    advice = re.search(r"to train longer: (.*)\)", capsys.readouterr().out)[1].split()
    assert advice == ["resume=auto", "train.max_step=12", "scheduler.max_step=6"]  # the cosine ended at step 6
    train_here(*shared, *advice)
    assert [record["step"] for record in metrics(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.parametrize(
    "override, words",
    [
        ("optimizer.lr=0.5", ["optimizer.lr", "0.5", "resume"]),
        ("model.d_inner=64", ["model.d_inner", "64"]),
        ("train.batch_size=16", ["train.batch_size", "16"]),
    ],
)
def test_a_resume_that_changes_the_mathematics_names_the_key(short_run, override, words):
    folder, shared = short_run
    done = run("train.py", *shared, "train.max_step=12", "resume=auto", override, cwd=folder, expect=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_an_existing_run_is_not_overwritten(short_run):
    folder, shared = short_run
    done = run("train.py", *shared, "train.max_step=12", cwd=folder, expect=2)
    assert "resume=auto" in done.stderr and "run_dir" in done.stderr


def test_resume_from_a_path_that_does_not_exist_is_an_error(short_run):
    folder, shared = short_run
    done = run("train.py", *shared, "train.max_step=12", f"resume={folder}/nowhere", cwd=folder, expect=2)
    assert "nowhere" in done.stderr and "does not exist" in done.stderr


@pytest.mark.parametrize(
    "changed",
    [
        {"rollbacks": 1e308},
        {"rollbacks": [1]},
        {"tokens_seen": True},
        {"spikes": {"recent": ["x"], "is_spike": False}},
        {"stream": {"epoch": [], "index": 0}},
    ],
)
def test_a_state_with_a_value_of_another_type_is_damage(changed, short_run, tmp_path):
    folder, shared = short_run
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    (tmp_path / "run/summary.json").unlink()
    checkpoint = tmp_path / "run/checkpoints/step_12"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | changed))
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match=r"step_12 is damaged \(ValueError: [^\n]*\); use another checkpoint$"):
        train_here(*shared, f"run_dir={tmp_path}/run", "train.max_step=12", "resume=auto")


def test_a_damaged_checkpoint_is_reported_passed_over_and_written_again(short_run, tmp_path, capsys):
    folder, shared = short_run
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    damaged = tmp_path / "run/checkpoints/step_12/model.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (tmp_path / "run/summary.json").unlink()
    shared = [*shared, f"run_dir={tmp_path}/run", "train.max_step=12", "resume=auto"]
    train_here(*shared)
    printed = capsys.readouterr()
    assert "damaged" in printed.out + printed.err and "step_12" in printed.out + printed.err
    assert "going on from" in printed.out and "step_8" in printed.out
    assert [r["step"] for r in metrics(tmp_path / "run")] == list(range(1, 13))
    states = [
        read_checkpoint_file(path / "run/checkpoints/step_12", "optimizer.pt")["state"] for path in (folder, tmp_path)
    ]
    assert_bitwise_equal(*states)
    verify_checkpoint(tmp_path / "run/checkpoints/step_12")


def test_max_step_may_be_raised_from_an_older_checkpoint_and_no_step_is_missing(short_run, tmp_path):
    folder, shared = short_run
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    shared = [*shared, f"run_dir={tmp_path}/run", f"resume={tmp_path}/run/checkpoints/step_4"]
    train_here(*shared, "train.max_step=14")
    assert [r["step"] for r in metrics(tmp_path / "run")] == list(range(1, 15))
    assert losses(tmp_path / "run")[:12] == losses(folder / "run")
    steps = {path.name for path in (tmp_path / "run/checkpoints").glob("step_*")}
    assert steps == {"step_4", "step_8", "step_12", "step_14"}


def test_a_checkpoint_of_another_run_continues_in_a_folder_of_its_own_only(short_run, tmp_path):
    folder, shared = short_run
    other = [*shared, "train.max_step=14", f"resume={folder}/run", f"run_dir={tmp_path}/other"]
    train_here(*other)
    assert [r["step"] for r in metrics(tmp_path / "other")] == [13, 14]
    done = run("train.py", *other, cwd=tmp_path, expect=2)
    assert "is of another run" in done.stderr and "resume=auto continues it" in done.stderr


def test_a_resume_on_other_text_is_one_line(short_run, tmp_path):
    folder, shared = short_run
    write_corpus(tmp_path, seed=1)
    elsewhere = [f"data.{split}={tmp_path}/{split}.txt" for split in ("train", "valid", "test")]
    done = run("train.py", *shared, *elsewhere, "train.max_step=12", "resume=auto", cwd=tmp_path, expect=2)
    assert "was trained on another data than data=text has now" in done.stderr and done.stderr.count("\n") == 1


def test_another_number_of_processes_and_accumulation_goes_on_with_the_same_losses(tmp_path):
    data = write_corpus(tmp_path / "text")
    shared = [*data, *TINY_RUN, "precision=fp64", "model.dropout=0", "scheduler.max_step=40", "train.roll=true"]
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    train_here(*shared, f"run_dir={straight}", "train.max_step=20")
    run("train.py", *shared, f"run_dir={changed}", "train.max_step=10", "gpus=2", cwd=tmp_path)
    train_here(*shared, f"run_dir={changed}", "train.max_step=15", "resume=auto", "train.micro_batch_size=2")
    last = [f"run_dir={changed}", "train.max_step=20", "resume=auto", "gpus=4"]
    assert "warning: 4 processes instead of 1" in run("train.py", *shared, *last, cwd=tmp_path).stdout
    one, other = metrics(straight), metrics(changed)
    assert [r["step"] for r in other] == list(range(1, 21))
    assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in one], rel=1e-9)


def test_a_run_folder_in_use_is_left_alone(tmp_path):
    data = write_corpus(tmp_path / "text")
    shared = [*data, *TINY_RUN, "train.max_step=100000", f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(command("train.py", *shared), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        done = run("train.py", *shared, "resume=auto", cwd=tmp_path, expect=2)
        assert "in use" in done.stderr and str(process.pid) in done.stderr
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 143
