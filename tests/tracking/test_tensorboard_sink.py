"""TensorBoard's own reader finds in the event files what metrics.jsonl holds."""

import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.configurations import composed
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from tests.support.tracked_runs import GEOMETRY, STEP, new_tracker, numbers_in_metrics
from txl.config.tracking import enabled_sinks
from txl.errors import ConfigError


def read_events(run_dir) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(run_dir) -> dict:
    """tag -> [(step, value), ...]"""
    events = read_events(run_dir)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def numbers_as_stored(run_dir) -> dict:
    """The same from metrics.jsonl; TensorBoard stores 32 bits."""
    return numbers_in_metrics(run_dir, lambda value: float(np.float32(value)))


def record_steps(tracker, first: int, last: int):
    for step in range(first, last + 1):
        tracker.train_step(step=step, **STEP | {"loss": 3 + 1 / step})
    result = dict(seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16)
    tracker.validation(step=last, is_best=True, **result)
    tracker.test(split="test", step=1, **result)  # the best weights may be older than the last step


def test_every_number_is_read_back_and_a_resumed_run_leaves_no_step_twice(tmp_path):
    first = new_tracker(tmp_path, tensorboard=True)
    record_steps(first, 1, 5)  # and it is killed: nothing is closed
    assert scalars(tmp_path) == numbers_as_stored(tmp_path)
    for resume_step in (3, 3, 5):
        resumed = new_tracker(tmp_path, resume_step=resume_step, tensorboard=True)
        record_steps(resumed, resume_step + 1, 7)
        resumed.summary({"steps": 7, "train_seconds": 1.0, "best_valid_loss": 3.0, "test": {"loss": 2.5}})
        resumed.close()
        results = {"valid/best_loss": [(7, 3.0)], "test/final_loss": [(7, 2.5)]}
        assert scalars(tmp_path) == numbers_as_stored(tmp_path) | results
        assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]
    events = read_events(tmp_path)
    texts = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    # This reader drops earlier scalars of a resumed run, but not earlier texts.
    assert [event.step for event in texts["config/text_summary"]] == [1, 4, 4, 6]
    assert [event.step for event in texts["summary/text_summary"]] == [7]
    assert b'"name": "demo"' in texts["config/text_summary"][0].tensor_proto.string_val[0]
    first.close()
    parts = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= parts.keys()
    session = HParamsPluginData.FromString(parts["_hparams_/session_start_info"].plugin_data.content)
    settings = session.session_start_info.hparams
    assert (settings["name"].string_value, settings["model.n_layer"].number_value) == ("demo", 4)


def test_a_training_with_a_list_of_sinks(tmp_path):
    tracking = ["tracking=[wandb,tensorboard]", "tracking.wandb.mode=offline"]
    shared = [
        *write_corpus(tmp_path),
        *TINY_RUN,
        *tracking,
        f"run_dir={tmp_path}/run",
        "scheduler=constant",
        "train.max_step=4",
    ]
    train_here(*shared, "valid.interval=2")
    found = scalars(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found.pop("valid/best_loss") == [(4, float(np.float32(summary["best_valid_loss"])))]
    assert found.pop("test/final_loss") == [(4, float(np.float32(summary["test"]["loss"])))]
    assert found == numbers_as_stored(tmp_path / "run")
    assert {"train/loss", "train/lr", "valid/bpc", "test/loss"} <= scalars(tmp_path / "run").keys()
    assert (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize(
    "choice, sinks",
    [("none", []), ("tensorboard", ["tensorboard"]), ("[wandb,tensorboard]", ["wandb", "tensorboard"]), ("[]", [])],
)
def test_tracking_takes_a_name_or_a_list(choice, sinks):
    assert [sink.name for sink in enabled_sinks(composed(f"tracking={choice}").tracking)] == sinks


def test_a_missing_package_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # not installed
    with pytest.raises(ConfigError) as error:
        composed("tracking=tensorboard")
    assert str(error.value) == (
        "tracking=tensorboard needs the package tensorboard, which is not installed: "
        "pip install tensorboard, or leave tensorboard out"
    )
