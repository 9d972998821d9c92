"""dry_run=true shows everything that decides a run, its time and its cost, before anything is started."""

import json

import pytest

from tests.support.configurations import composed
from txl.cli.overridden import recipe_overrides
from txl.config.compose import to_dict
from txl.plan import dry_run as dry_run_module
from txl.plan.dry_run import (
    DryRun,
    EncodedData,
    describe_lengths,
    describe_optimizer,
    describe_schedule,
    show_duration_long,
)
from txl.plan.expected_speed import PUBLISHED_MODELS, ExpectedSpeed, expected_speed
from txl.plan.run_plan import make_plan
from txl.system.hardware import Gpu


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No launcher, and no runs that have measured a speed."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)


def dry_run(*overrides, data=None, overridden=None):
    config = composed(*overrides)
    plan = make_plan(config, data and data.vocab_size, data and data.unknown)
    speed = expected_speed(config, plan)
    return DryRun(config, plan, data or EncodedData(plan.parameters), speed, overridden or {}, is_published=True)


def test_the_published_speed_gives_time_and_gpu_hours():
    shown = dry_run("hardware=dgxa100", "precision=fp16")
    assert shown.speed.tokens_per_second == 449_890
    assert shown.seconds == pytest.approx(40_000 * 256 * 192 / 449_890)
    assert shown.gpu_hours == pytest.approx(8 * shown.seconds / 3600)
    assert abs(shown.seconds / 60 - 76) < 5  # minutes that were published for the whole training
    row = " ".join(str(shown).partition("\ntime ")[2].partition("\noverridden")[0].split())
    assert row == (
        "about 1 h 13 min, 9.7 GPU-hours, without validation: 449,890 tokens/s, published for 8 GPUs of DGX A100, "
        "fp16, micro batch 32"
    )


def test_another_number_of_gpus_is_scaled_and_says_so():
    speed = dry_run("hardware=dgxa100", "precision=bf16", "nodes=4", "train.batch_size=1024").speed
    assert speed.tokens_per_second == 4 * 449_890
    assert speed.source == "published for 8 GPUs of DGX A100, fp16, micro batch 32, scaled to 32"


@pytest.mark.parametrize(
    "overrides",
    [["hardware=t4"], ["hardware=cpu"], ["hardware=dgxa100", "precision=fp32"], ["experiment=demo", "hardware=cpu"]]
    + [["hardware=dgxa100", "precision=fp16", *changed] for changed in (["model.n_layer=15"], ["train.mem_len=384"])],
)
def test_a_speed_that_nobody_measured_is_not_made_up(overrides):
    shown = dry_run(*overrides)
    assert shown.speed is None and shown.gpu_hours is None
    assert "not known: nothing was published or measured" in " ".join(str(shown).split())


def test_the_published_models_are_those_of_the_published_speeds():
    for model, expected in PUBLISHED_MODELS.items():
        config = composed(f"model={model}")
        assert (make_plan(config).layer_parameters, config.train.tgt_len, config.train.mem_len) == expected


def test_a_run_of_its_own_kind_is_a_better_source_than_what_was_published(tmp_path):
    config = composed("hardware=dgxa100", "precision=fp16")
    plan = make_plan(config)
    for seed, precision, speed in ((1, "fp16", 500_000.0), (2, "fp32", 1.0)):
        folder = tmp_path / "runs" / config.name / f"{seed}"
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
        settings = to_dict(config)
        settings["precision"]["name"] = precision
        (folder / "config.yaml").write_text(json.dumps(settings))
        records = [{"kind": "train", "step": 10, "tokens_per_second": speed}, {"kind": "valid", "step": 10}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    speed = expected_speed(config, plan)
    assert (speed.tokens_per_second, speed.source) == (500_000.0, "measured by runs/wt103-base/1")


@pytest.mark.parametrize("gpus, hours", [([], None), ([Gpu("H100", 80, None)], 0.5)])
def test_a_machine_without_gpus_has_no_gpu_hours(gpus, hours, monkeypatch):
    monkeypatch.setattr(dry_run_module, "visible_gpus", lambda: gpus)
    config = composed("experiment=demo", "hardware=auto")
    plan = make_plan(config)
    speed = ExpectedSpeed(plan.total_tokens / 1800, "measured")
    assert DryRun(config, plan, EncodedData(), speed, {}, is_published=False).gpu_hours == hours


def test_everything_that_decides_a_run_is_shown_in_80_columns():
    shares = {"train": 0.004, "valid": 0.006, "test": 0.006}
    data = EncodedData(267_735, {"train": 103_227_021, "valid": 217_646}, shares)
    chosen = ["hardware=dgxa100", "precision=fp16", "train.batch_size=64"]
    shown = dry_run(*chosen, data=data, overridden={"train.batch_size": (64, 256)})
    text = str(shown)
    assert max(map(len, text.splitlines())) <= 80
    rows = " ".join(text.split())
    for said in (
        "optimizer lamb lr 0.01 betas [0.9, 0.999] eps 1e-06, clip 0.25",
        "schedule cosine from 0.01 to 0.001 at step 40,000, warm-up 1,000 steps",
        "precision fp16",
        "dropout 0.1, of attention 0",
        "lengths tgt_len 192 mem_len 192 clamp_len -1 same_length false",
        "validation tgt_len 192 mem_len 192 clamp_len -1 same_length false batch 16, every 5,000 steps",
        "evaluation tgt_len 64 mem_len 640 clamp_len 400 same_length true batch 16, by txl evaluate",
        "unknown train 0.4 %, valid 0.6 %, test 0.6 % optimizer",
        "vocabulary 267,735; tokens: train 103,227,021, valid 217,646; 4.8 epochs",
        "overridden train.batch_size 64, published 256",
    ):
        assert said in rows
    written = json.loads(json.dumps(shown.to_dict()))
    assert written["overridden"] == {"train.batch_size": {"value": 64, "recipe": 256}}
    assert written["data"]["tokens"]["train"] == 103_227_021 and written["gpu_hours"] == shown.gpu_hours


def test_a_memory_that_begins_later_stands_beside_the_lengths():
    assert describe_lengths(composed("train.mem_from_step=1500")).endswith("false, memory from step 1,500 on")
    assert "memory" not in describe_lengths(composed("train.mem_from_step=1500", "train.mem_len=0"))


def test_every_optimizer_and_schedule_is_described():
    assert describe_optimizer(composed("optimizer=sgd", "train.clip=0")).startswith("sgd lr ")
    plateau = describe_schedule(composed("scheduler=dev_perf", "scheduler.warmup_step=0"))
    assert "validations without improvement" in plateau and plateau.endswith("no warm-up")
    assert describe_schedule(composed("scheduler=constant")) == "constant from 0.01, warm-up 1,000 steps"


def test_what_chooses_a_recipe_is_not_what_replaces_its_values():
    chosen = ["model=large", "hardware=dgx2", "nodes=8", "data.path=a", "seed=3"]
    replaced = ["train.batch_size=3", "optimizer=sgd", "+model.x=1", "scheduler=constant"]
    assert recipe_overrides([*chosen, *replaced]) == chosen


@pytest.mark.parametrize("seconds, shown", [(20, "20 s"), (90, "2 min"), (4380, "1 h 13 min"), (90_000, "1 d 1 h")])
def test_durations_are_in_units_of_their_size(seconds, shown):
    assert show_duration_long(seconds) == shown
