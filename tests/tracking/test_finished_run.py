"""`txl track` gives finished runs to trackers: equal to metrics.jsonl, once, and a run that went on is continued."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.support.configurations import composed
from tests.support.recording_processes import environment
from tests.support.tracked_runs import GEOMETRY, STEP, new_tracker, numbers_in_metrics, records
from tests.support.wandb_files import numbers_of, wandb_records
from txl.cli.main import main
from txl.config.compose import to_dict
from txl.config.tracking import SinkName, WandbMode
from txl.errors import ConfigError
from txl.system.run_lock import held_lock
from txl.tracking.finished_run import track_finished_run


def record_run(folder, first, last):
    """A run that was recorded by nothing but metrics.jsonl."""
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(composed("experiment=demo"))))
        (folder / "plan.json").write_text("{}")
    tracker = new_tracker(folder, resume_step=first - 1)
    for step in range(first, last + 1):
        tracker.train_step(step=step, **STEP | {"loss": 3 + 1 / step, "tokens_seen": 100 * step})
    result = dict(seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16)
    tracker.validation(step=last, is_best=True, **result)
    tracker.test(split="test", step=last, **result)
    tracker.summary({"steps": last, "train_seconds": 1.0, "best_valid_loss": 3.0})
    tracker.close()
    return folder


def track(*arguments):
    command = [sys.executable, "-m", "txl", "track", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def test_wandb_gets_a_finished_run_once_and_what_is_new_later(tmp_path):
    run = record_run(tmp_path / "run", 1, 5)
    for said in ("wandb has its record\n", "wandb has its record already\n"):
        done = track(tmp_path, "--to", "wandb", "--mode", "offline")
        assert done.returncode == 0 and done.stdout.endswith(said), done.stdout + done.stderr
    ((record, rows, _),) = wandb_records(run)
    assert numbers_of(rows) == numbers_in_metrics(run)
    assert record.run_id == (run / "wandb_id").read_text().strip()
    record_run(run, 6, 8)
    assert track(run, "--to", "wandb", "--mode", "offline").returncode == 0
    both = [numbers_of(rows) for _, rows, _ in wandb_records(run)]
    assert [step for part in both for step, _ in part["train/loss"]] == list(range(1, 9))
    assert both[0]["train/loss"] + both[1]["train/loss"] == numbers_in_metrics(run)["train/loss"]


def test_tensorboard_has_every_record_once_however_often_it_is_asked(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = record_run(tmp_path / "run", 1, 5)
    assert [track_finished_run(run, SinkName.tensorboard, WandbMode.online) for _ in range(2)] == [True, False]
    record_run(run, 6, 8)
    assert track_finished_run(run, SinkName.tensorboard, WandbMode.online)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    expected = [record["loss"] for record in records(run) if record["kind"] == "train"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_tracked_is_one_line(tmp_path, capsys):
    assert main(["track", str(tmp_path), "--to", "tensorboard"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")
    run = record_run(tmp_path / "run", 1, 2)
    with held_lock(run), pytest.raises(ConfigError, match="is running"):
        track_finished_run(run, SinkName.tensorboard, WandbMode.online)
    (run / "wandb_id").write_text("abc")
    with pytest.raises(ConfigError, match="was recorded by wandb while it ran"):
        track_finished_run(run, SinkName.wandb, WandbMode.offline)


def test_a_damaged_line_and_a_loss_that_is_not_finite_are_no_obstacle(tmp_path):
    run = record_run(tmp_path / "run", 1, 3)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"loss": None})
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{torn", *lines[1:]]) + "\n")
    assert track_finished_run(run, SinkName.tensorboard, WandbMode.online)
