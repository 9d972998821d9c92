"""What a training does besides learning: every option takes a step, limits and targets hold, mistakes come first."""

import math
from pathlib import Path

import pytest
import torch

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.made_data import write_corpus
from tests.support.mistakes import mistakes
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.data.corpus import open_corpus
from txl.errors import ConfigError
from txl.launch.prepare import prepare
from txl.system.world import World
from txl.tracking.sinks import TrackedRun
from txl.tracking.tracker import open_tracker
from txl.train.trainer import Trainer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Overrides that name a small text."""
    return write_corpus(tmp_path_factory.mktemp("trainer"))


def train(run_dir, text, *overrides):
    """Train in this process as one rank; returns the exit code."""
    config = composed(*text, *TINY_RUN, f"run_dir={run_dir}", *overrides)
    with prepare(config) as start:
        return trainer_of(config, start).train()


def trainer_of(config, start):
    tracker = open_tracker(TrackedRun.of(config), Path(start.plan.run_dir), rank=0)
    return Trainer(config, start.plan, open_corpus(config.data), World(), torch.device("cpu"), tracker)


# --------------------------------------------------------------------------- every option

MODELS = {
    "relative": "train.clamp_len=4",
    "relative, untied, pre-LN": "model.untie_r=true model.pre_lnorm=true train.ext_len=3",
    "relative, same length": "train.same_length=true model.dropatt=0.1",
    "relative, no memory": "train.mem_len=0 train.ext_len=3",
    "relative, clusters": "data.cutoffs=[5,12] model.div_val=2",
    "relative, clusters of one width": "data.cutoffs=[5,12] train.clip_nonemb=true",
    "relative, everything its own": (
        "data.cutoffs=[5,12] model.div_val=2 model.tie_weight=false model.tie_projs=[false]"
    ),
    "relative, narrow": "model.d_embed=8 data.cutoffs=[5] model.adaptive=false",
    "relative, uniform": "model.init=uniform model.emb_init=uniform model.emb_init_range=0.1",
    "shaw": "model.positions=shaw train.clamp_len=4",
    "shaw, pre-LN": "model.positions=shaw model.pre_lnorm=true train.same_length=true",
    "absolute": "model.positions=absolute train.clamp_len=4",
    "absolute, pre-LN": "model.positions=absolute model.pre_lnorm=true train.ext_len=3",
    "absolute per layer": "model.positions=absolute_per_layer train.same_length=true",
    "absolute per layer, pre-LN": "model.positions=absolute_per_layer model.pre_lnorm=true data.cutoffs=[5,12]",
    "rotary": "model.positions=rotary train.ext_len=3",
    "rotary, same length": "model.positions=rotary train.same_length=true attention=sdpa recompute=true",
    "recomputed": "recompute=true",
    "eager": "attention=eager",
    "deterministic": "deterministic=true",
    "fp64": "precision=fp64",
    "bf16": "precision=bf16",
}
METHODS = {
    **{name: f"optimizer={name} optimizer.weight_decay=0.01" for name in ("lamb", "adam", "sgd", "adagrad", "muon")},
    **{f"{name} schedule": f"scheduler={name}" for name in ("cosine", "linear", "inv_sqrt", "constant")},
    "plateau": "scheduler=dev_perf valid.interval=2",
    "momentum": "optimizer=sgd optimizer.momentum=0.9",
    "rates of groups": 'optimizer.lr_scale=["embedding.*=0.5","*.bias=0"]',
    "first update at the base rate": "optimizer=lamb scheduler.first_update_at_base_lr=true",
    "no clipping": "train.clip=0",
}


@pytest.mark.parametrize("case", MODELS | METHODS)
def test_every_model_and_method_trains_validates_and_tests(case, text, tmp_path):
    options = ["train.max_step=3", "scheduler.warmup_step=1", *(MODELS | METHODS)[case].split()]
    assert train(tmp_path, text, *options) == 0
    losses = [record["loss"] for kind in ("train", "valid", "test") for record in metrics(tmp_path, kind)]
    assert len(losses) >= 5 and all(0 < loss < 2 * math.log(21) for loss in losses)


def test_a_group_with_half_the_rate_is_trained_as_with_half_the_base_rate(text, tmp_path):
    options = ["optimizer=sgd", "scheduler=constant", "train.max_step=3", "deterministic=true"]
    assert train(tmp_path / "a", text, *options, "optimizer.lr=0.25", 'optimizer.lr_scale=["*=0.5"]') == 0
    assert train(tmp_path / "b", text, *options, "optimizer.lr=0.125") == 0
    losses = [[record["loss"] for record in metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_the_plateau_lowers_the_rate_of_a_run_that_gets_no_better(text, tmp_path):
    options = ["optimizer=sgd", "optimizer.lr=1e-9", "scheduler=dev_perf", "scheduler.warmup_step=0"]
    assert train(tmp_path, text, *options, "valid.interval=2", "train.max_step=9") == 0
    assert [record["lr"] for record in metrics(tmp_path)][-1] == pytest.approx(1e-9 / 8)


# --------------------------------------------------------------------------- limits and targets


def test_missed_targets_set_the_exit_code_and_are_named(text, tmp_path, capsys):
    few = ["train.max_step=2", "scheduler=constant"]
    assert train(tmp_path / "a", text, *few, "train.target_perplexity=100", "train.target_throughput=0.01") == 0
    assert train(tmp_path / "b", text, *few, "train.target_perplexity=1.5") == 3
    assert train(tmp_path / "c", text, *few, "train.target_throughput=1e12") == 3
    said = capsys.readouterr().out
    assert "train.target_perplexity=1.5 was missed: test bpc" in said
    assert "train.target_throughput=1e+12 was missed: " in said


def test_a_time_limit_ends_every_start_cleanly_and_loses_nothing(text, tmp_path, capsys):
    limited = ["train.time_limit_minutes=1e-6", "train.max_step=3", "scheduler=constant", "resume=auto"]
    config = composed(*text, *TINY_RUN, f"run_dir={tmp_path}", *limited)
    for step in (1, 2, 3):
        with prepare(config) as start:
            trainer = trainer_of(config, start)
            if start.checkpoint:
                trainer.restore(tmp_path / "checkpoints" / "last")
            assert trainer.train() == 0 and trainer.state.step == step
    said = capsys.readouterr().out
    assert "Stopped at step 2 (time limit); saved. Continue with resume=auto" in said and "End of training" in said
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2, 3]


# --------------------------------------------------------------------------- mistakes before any work


@mistakes("split_too_short")
def test_a_split_that_fills_no_segment_is_refused_before_there_is_a_run(mistake, answer, text, tmp_path):
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", text, *mistake.split())
    assert answer in str(error.value) and not (tmp_path / "run").exists()


def test_a_perplexity_to_reach_needs_a_test_split(text, tmp_path):
    without = [override for override in text if not override.startswith("data.test=")]
    with pytest.raises(ConfigError, match="train.target_perplexity=20 needs a test split"):
        train(tmp_path / "run", without, "train.target_perplexity=20")


def test_a_batch_larger_than_the_text_is_one_line_with_several_processes_too(text, tmp_path):
    options = ["gpus=2", "train.batch_size=5000", f"run_dir={tmp_path}/run"]
    done = run("train.py", *text, *TINY_RUN, *options, cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: train.batch_size=5000") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
