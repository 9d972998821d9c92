"""A training that is not finite any more stops early, is no success, and harms no checkpoint."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.bitwise import assert_bitwise_equal
from tests.support.configurations import composed
from tests.support.entry_points import PROJECT, environment, run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.config.data import Metric
from txl.config.precision import Arithmetic
from txl.data.corpus import open_corpus
from txl.data.sentence_batches import training_stream
from txl.evaluate.targets import Targets
from txl.launch.prepare import prepare
from txl.launch.replay import main as replay_main
from txl.system.process_exit import DIVERGED, MISSED_TARGET
from txl.system.world import World
from txl.tracking.sinks import TrackedRun
from txl.tracking.tracker import open_tracker
from txl.train import optimizer_step, trainer
from txl.train.divergence import are_finite
from txl.train.trainer import Trainer

TOO_FAST = ["optimizer=sgd", "optimizer.lr=1e9", "train.clip=0", "scheduler.warmup_step=0"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Overrides that name a small text."""
    return write_corpus(tmp_path_factory.mktemp("divergence"))


@pytest.fixture
def train(text, tmp_path):
    """Train in this process: overrides -> the run folder."""

    def start(*overrides, expect=0):
        train_here(*text, *TINY_RUN, "train.max_step=8", f"run_dir={tmp_path}/run", *overrides, expect=expect)
        return tmp_path / "run"

    return start


def poison(monkeypatch, step: int, value: float = math.nan) -> None:
    """After this step, one weight is not finite."""
    plain = optimizer_step.OptimizerStep.run

    def run_and_poison(self, batch, done, lr):
        tokens = plain(self, batch, done, lr)
        if done + 1 == step:
            with torch.no_grad():
                self.model.layers[0].feed_forward.inner.weight[0, 0] = value
        return tokens

    monkeypatch.setattr(optimizer_step.OptimizerStep, "run", run_and_poison)


def saved_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints; all of them must be finite."""
    folders = sorted((run_dir / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for folder in folders:
        assert are_finite(list(read_checkpoint_file(folder, "model.pt").values()))
    return [int(folder.name.removeprefix("step_")) for folder in folders]


# --------------------------------------------------------------------------- training


def test_a_diverged_training_ends_with_one_line_that_says_when_and_what_to_try(train, capsys):
    run_dir = train(*TOO_FAST, "checkpoint.interval=1", "train.target_perplexity=2", expect=DIVERGED)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the training diverged: its loss or gradient is not finite (since step ")
    for part in ("the last finite loss was ", "learning rate 8.54e+08", "optimizer.lr", "train.clip=0.25"):
        assert part in line
    assert len(line) < 300 and not (run_dir / "summary.json").exists()
    assert saved_steps(run_dir)  # those before it


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("validates", ["true", "false"])
def test_no_checkpoint_is_written_that_is_not_finite(train, monkeypatch, value, validates):
    """The loss is read too seldom to notice: the weights themselves are looked at before they are saved."""
    poison(monkeypatch, step=5, value=value)
    often = ["checkpoint.interval=1", "train.log_interval=1000", f"valid.enabled={validates}"]
    run_dir = train(*often, "checkpoint.save_all=true", expect=DIVERGED)
    assert saved_steps(run_dir) == [1, 2, 3, 4]


def test_a_validation_that_is_not_finite_is_never_the_best(train, monkeypatch):
    plain, losses = trainer.evaluate_split, iter([3.0, math.nan])
    monkeypatch.setattr(trainer, "evaluate_split", lambda *args: replace(plain(*args), loss=next(losses)))
    run_dir = train("valid.interval=2", expect=DIVERGED)
    assert [record["is_best"] for record in metrics(run_dir, "valid")] == [True, False]
    assert saved_steps(run_dir) == [2] and (run_dir / "checkpoints/best").resolve().name == "step_2"


def test_a_diverged_run_goes_on_from_its_last_finite_checkpoint(train, monkeypatch):
    with monkeypatch.context() as patched:
        poison(patched, step=5)
        train("checkpoint.interval=2", expect=DIVERGED)
    run_dir = train("checkpoint.interval=2", "resume=auto")
    assert [record["step"] for record in metrics(run_dir)] == list(range(1, 9))
    assert all(math.isfinite(record["loss"]) for record in metrics(run_dir))


def test_two_processes_stop_together(text, tmp_path):
    options = [*TOO_FAST, "gpus=2", f"run_dir={tmp_path}/run", "train.max_step=8"]
    done = run("train.py", *text, *TINY_RUN, *options, cwd=tmp_path, expect=DIVERGED)
    assert done.stdout.count("error: the training diverged") == 1 and "Traceback" not in done.stderr


# --------------------------------------------------------------------------- replay, rollback, skipped steps


def test_one_command_repeats_the_step_that_was_not_finite(text, tmp_path):
    options = [*TOO_FAST, "checkpoint.interval=1", "gpus=2", "train.max_step=8", "train.log_interval=4"]
    done = run("train.py", *text, *TINY_RUN, *options, f"run_dir={tmp_path}/run", cwd=tmp_path, expect=DIVERGED)
    step, batch = map(int, re.search(r"since step (\d+) \(epoch 1, batch (\d+)\)", done.stdout).groups())
    command = re.search(r"to repeat the step: txl replay (.*)", done.stdout)[1]
    assert batch == step - 1 and command == f"{tmp_path}/run/divergence/step_{step}"
    shutil.rmtree(tmp_path / "run/checkpoints")  # the dump holds what it needs
    replay = [sys.executable, "-m", "txl", "replay", command]
    again = subprocess.run(
        replay, cwd=tmp_path, env=environment(PYTHONPATH=str(PROJECT)), capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"since step {step} (epoch 1, batch {batch})" in again.stdout and "it diverged again" in again.stdout
    assert metrics(Path(command) / "replay")[-1]["step"] == step


def test_a_folder_without_a_dump_cannot_be_replayed(tmp_path, capsys):
    assert replay_main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "holds no readable dump.json" in said and said.count("\n") == 1


@pytest.fixture
def bad_batch(text, monkeypatch):
    """The weights are not finite after this batch: the sixth of the text, whatever step reads it."""
    plain = optimizer_step.OptimizerStep.run
    config = composed(*text, *TINY_RUN)
    bad = training_stream(open_corpus(config.data), config.train, config.seed).batch(1, 5)

    def run_and_poison(self, batch, done, lr):
        tokens = plain(self, batch, done, lr)
        if torch.equal(batch.input, bad.input):
            with torch.no_grad():
                self.model.layers[0].feed_forward.inner.weight[0, 0] = math.nan
        return tokens

    monkeypatch.setattr(optimizer_step.OptimizerStep, "run", run_and_poison)


ROLLBACK = ["train.on_divergence=rollback", "checkpoint.interval=2", "checkpoint.save_all=true", "train.max_step=12"]


def test_a_rollback_goes_on_with_later_data_and_a_lower_rate(train, bad_batch, capsys):
    run_dir = train(*ROLLBACK, "scheduler=constant", "scheduler.warmup_step=0")
    said = capsys.readouterr().out
    assert "rollback 1 of at most 3: back to step 4, behind epoch 1 batch 5, with 0.5 times" in said
    records = metrics(run_dir)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["batch"] for record in records] == [1, 2, 3, 4, *range(7, 15)]
    assert [record.get("rollbacks") for record in records] == [None] * 4 + [1] * 8
    assert records[4]["lr"] == records[3]["lr"] / 2 and all(math.isfinite(record["loss"]) for record in records)
    (rollback,) = json.loads((run_dir / "summary.json").read_text())["rollbacks"]
    assert rollback == {"from_step": 6, "to_step": 4, "epoch": 1, "batch": 5}
    assert saved_steps(run_dir) == [2, 4, 6, 8, 10, 12]


def test_a_run_that_is_killed_after_a_rollback_continues_bitwise(text, bad_batch, tmp_path, monkeypatch):
    options = [*text, *TINY_RUN, *ROLLBACK]
    train_here(*options, f"run_dir={tmp_path}/straight")
    for kill_after in (5, 9):  # before the first checkpoint after the rollback, and behind it
        broken = tmp_path / f"broken_{kill_after}"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            plain = trainer.Trainer.log_step

            def killed(self, plain=plain, kill_after=kill_after):
                plain(self)
                if self.state.step == kill_after and self.state.rollbacks:
                    raise KeyboardInterrupt

            patched.setattr(trainer.Trainer, "log_step", killed)
            train_here(*options, f"run_dir={broken}")
        train_here(*options, f"run_dir={broken}", "resume=auto")
        for name in ("model.pt", "optimizer.pt"):
            folders = [path / "checkpoints" / "step_12" for path in (tmp_path / "straight", broken)]
            assert_bitwise_equal(*(read_checkpoint_file(folder, name) for folder in folders))
        losses = [[(r["step"], r["loss"]) for r in metrics(path)] for path in (tmp_path / "straight", broken)]
        assert losses[0] == losses[1]


def test_rollbacks_end_after_the_largest_number(train, capsys):
    run_dir = train(*TOO_FAST, *ROLLBACK, "checkpoint.interval=1", "train.max_rollbacks=2", expect=DIVERGED)
    said = capsys.readouterr().out
    assert said.count("rollback 1 of") == said.count("rollback 2 of") == 1 and "rollback 3 of" not in said
    assert saved_steps(run_dir)


def test_two_processes_roll_back_together(text, tmp_path):
    options = [*TOO_FAST, *ROLLBACK, "checkpoint.interval=1", "train.max_rollbacks=1", "gpus=2"]
    done = run("train.py", *text, *TINY_RUN, *options, f"run_dir={tmp_path}/run", cwd=tmp_path, expect=DIVERGED)
    assert done.stdout.count("rollback 1 of") == 1 and "Traceback" not in done.stderr


def test_single_steps_that_are_not_finite_are_skipped_and_counted(train, monkeypatch):
    plain = optimizer_step.OptimizerStep.run

    def run_and_overflow(self, batch, done, lr):
        def overflow(part):
            if part == "backward" and done + 1 in (2, 3, 5):
                next(self.model.parameters()).grad.fill_(math.inf)

        self.on_part_done = overflow
        return plain(self, batch, done, lr)

    monkeypatch.setattr(optimizer_step.OptimizerStep, "run", run_and_overflow)
    run_dir = train("train.non_finite_steps=3")
    assert [record["skipped_steps"] for record in metrics(run_dir)] == [0, 1, 2, 2, 3, 3, 3, 3]
    assert json.loads((run_dir / "summary.json").read_text())["skipped_steps"] == 3


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(train, capsys):
    train(*TOO_FAST, "train.non_finite_steps=2", expect=DIVERGED)
    assert "the gradients of 2 steps in a row are not finite" in capsys.readouterr().out


def test_a_sudden_rise_of_the_loss_is_said_once_and_marked(train, monkeypatch, capsys):
    plain = optimizer_step.OptimizerStep.take_window

    def rise(self):
        nats, tokens = plain(self)
        self.windows = getattr(self, "windows", 0) + 1
        return nats + 3 * tokens * (self.windows in (13, 14)), tokens

    monkeypatch.setattr(optimizer_step.OptimizerStep, "take_window", rise)
    run_dir = train("train.max_step=16")
    assert [record["step"] for record in metrics(run_dir) if record.get("spike")] == [13, 14]
    assert capsys.readouterr().out.count("loss spike: ") == 1


# --------------------------------------------------------------------------- fp16: skipped and counted


def train_in_fp16(text, run_dir, initial_loss_scale):
    """As on a GPU, with the loss scaler; returns the exit code."""
    config = composed(*text, *TINY_RUN, f"run_dir={run_dir}", "train.max_step=8", "scheduler.warmup_step=1")
    config.precision = replace(config.precision, name=Arithmetic.fp16, initial_loss_scale=initial_loss_scale)
    config.precision.name = Arithmetic.fp16
    config.hardware = replace(config.hardware, name="t4")
    with prepare(config) as start:
        tracker = open_tracker(TrackedRun.of(config), run_dir, rank=0)
        return Trainer(config, start.plan, open_corpus(config.data), World(), torch.device("cpu"), tracker).train()


def test_the_scaler_skips_and_counts_steps_whose_gradient_overflows(text, tmp_path):
    assert train_in_fp16(text, tmp_path, initial_loss_scale=2.0**24) == 0
    records = metrics(tmp_path)
    skipped = [record["skipped_steps"] for record in records]
    assert skipped[0] == 1 and skipped == sorted(skipped) and skipped[-1] < 8
    assert json.loads((tmp_path / "summary.json").read_text())["skipped_steps"] == skipped[-1]
    state = read_checkpoint_file((tmp_path / "checkpoints/last").resolve(), "state.json")
    assert state["skipped_steps"] == skipped[-1]
    assert records[-1]["loss_scale"] == 2.0 ** (24 - skipped[-1]) and math.isfinite(records[-1]["loss"])


def test_a_run_whose_every_step_is_skipped_stops(text, tmp_path, capsys):
    assert train_in_fp16(text, tmp_path, initial_loss_scale=1e-5) == DIVERGED
    assert "the loss scale of fp16 fell to 1e-05" in capsys.readouterr().out


# --------------------------------------------------------------------------- targets


def test_a_score_that_is_no_number_misses_every_target():
    targets = Targets(perplexity=10, throughput=5, section="train.")
    assert targets.missed_score("test", Metric.ppl, math.nan) == "train.target_perplexity=10 was missed: test ppl nan"
    assert targets.missed_score("test", Metric.ppl, 10.0) is None
    assert targets.missed_speed(math.nan) is not None and targets.missed_speed(5.0) is None
    assert Targets(None, None).missed_score("test", Metric.ppl, math.nan) is None


def test_an_evaluation_whose_loss_is_no_number_misses_its_target(train, tmp_path, capsys):
    run_dir = train()
    state = read_checkpoint_file((run_dir / "checkpoints/best").resolve(), "model.pt")
    torch.save({name: tensor * math.nan for name, tensor in state.items()}, tmp_path / "weights.pt")
    described = [f"checkpoint={tmp_path}/weights.pt", f"config_file={run_dir}/config.yaml", "hardware=cpu"]
    evaluate_here(*described, "target_perplexity=10", f"json={tmp_path}/result.json", expect=MISSED_TARGET)
    assert "target_perplexity=10 was missed: test bpc nan" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["test"]["loss"] is None
