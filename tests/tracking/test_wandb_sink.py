"""wandb gets the whole run, and may go away at any time."""

import json
import socket
import sys
import time

import pytest

from tests.support.recording_processes import command_that_records, environment, record_in_process, run_in_terminal
from tests.support.tracked_runs import STEP, WANDB, new_tracker, numbers_in_metrics, records
from tests.support.wandb_files import numbers_of, wandb_alerts, wandb_records
from txl.config.tracking import WandbConfig, WandbMode
from txl.system.process_exit import PREEMPTED
from txl.tracking.wandb_sink import stored_wandb_id


def assert_complete(run_dir, steps=30):
    found = records(run_dir)
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, steps + 1))
    assert [r["kind"] for r in found[steps:]] == ["valid", "test"]
    assert (run_dir / "summary.json").exists()


def test_slurms_credentials_are_in_no_file_of_wandb(tmp_path):
    code, text = record_in_process(tmp_path, "offline", env={"SLURM_JWT": "secret-jwt", "SLURM_JOB_ID": "4711"})
    assert code == 0, text
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"secret-jwt" in content for content in files)


def test_wandb_offline_holds_the_whole_run(tmp_path):
    code, text = record_in_process(tmp_path, "offline")
    assert code == 0, text
    assert_complete(tmp_path)
    ((record, rows, summary),) = wandb_records(tmp_path)
    assert (record.project, record.run_group, record.job_type) == ("txl", "seeds", "train")
    assert list(record.tags) == ["a", "b"]
    assert record.display_name == f"demo-{tmp_path.name}"
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert {"name": "demo", "seed": 1, "model.n_layer": 4}.items() <= config.items()
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 31))
    assert rows[0]["train/loss"] == 3.0 and rows[0]["train/lr"] == 0.01
    assert numbers_of(rows) == numbers_in_metrics(tmp_path)
    tokens = {r["step"]: r["tokens_seen"] for r in records(tmp_path) if r["kind"] == "train"}
    assert all(row["tokens"] == tokens[row["step"]] for row in rows if "train/loss" in row)
    assert summary["train/loss"].keys() == summary["valid/loss"].keys() == {"min", "last"}
    assert any(row.get("valid/loss") == 2.5 and row["_step"] == 30 for row in rows)
    assert summary["train_seconds"] == 60.0


def test_a_resumed_run_is_the_same_wandb_run(tmp_path):
    assert record_in_process(tmp_path, "offline")[0] == 0
    code, text = record_in_process(tmp_path, "offline", resume_step=20, steps=20)
    assert code == 0, text
    (first, _, _), (second, rows, _) = wandb_records(tmp_path)
    assert first.run_id == second.run_id == (tmp_path / "wandb_id").read_text().strip()
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(21, 41))
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "train"] == list(range(1, 41))


def test_an_unreachable_wandb_costs_a_warning(tmp_path):
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "PATIENCE": "3"}
    began = time.monotonic()
    code, text = record_in_process(tmp_path, "online", env=env)
    assert code == 0, text
    assert time.monotonic() - began < 30
    assert text.count("warning: wandb: ") == 1 and "the run goes on without it" in text
    assert_complete(tmp_path)


def test_a_server_that_never_answers_costs_a_warning(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "PATIENCE": "3"}
        began = time.monotonic()
        code, text = record_in_process(tmp_path, "online", env=env)
    assert code == 0, text
    assert time.monotonic() - began < 30 and text.count("warning: wandb: ") == 1
    assert_complete(tmp_path)


def test_wandb_without_a_key_does_not_ask_for_one(tmp_path):
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    text, code = run_in_terminal(command_that_records(tmp_path, "online"), environment(**env))
    assert code == 0 and text.count("warning: wandb: ") == 1
    assert_complete(tmp_path)


def test_a_killed_wandb_service_costs_a_warning(tmp_path):
    code, text = record_in_process(tmp_path, "offline", "kill")
    assert code == 0, text
    assert "wandb-core is gone" in text and text.count("warning: wandb: ") == 1
    assert "Traceback" not in text
    assert_complete(tmp_path)


def test_slurms_signal_does_not_kill_a_wandb_service_that_is_starting(tmp_path):
    code, text = record_in_process(tmp_path, "offline", "signal")
    assert code == 0 and "signalled" in text and "warning" not in text, text
    ((_, rows, _),) = wandb_records(tmp_path)
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 31))


def test_a_stalled_wandb_service_is_not_waited_for(tmp_path):
    began = time.monotonic()
    code, text = record_in_process(tmp_path, "offline", "stop", env={"PATIENCE": "2"})
    assert code == 0, text
    assert time.monotonic() - began < 30 and "did not finish in time" in text
    assert_complete(tmp_path)


def test_a_training_that_breaks_ends_at_once_and_with_its_own_error(tmp_path):
    code, text = record_in_process(tmp_path, "offline", "raise")
    assert code == 1 and "RuntimeError: the training broke" in text
    ((_, rows, _),) = wandb_records(tmp_path)
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 31))


@pytest.mark.parametrize(
    "asked, code, sent",
    [
        (True, PREEMPTED, ("Run requeued", "INFO")),
        pytest.param(True, 0, ("Run finished", "INFO"), marks=pytest.mark.slow),
        pytest.param(True, 1, ("Run failed", "ERROR"), marks=pytest.mark.slow),
        pytest.param(False, 1, None, marks=pytest.mark.slow),
    ],
)
def test_alerts_tell_of_the_end_a_failure_and_a_requeue_when_asked(tmp_path, asked, code, sent):
    t = new_tracker(tmp_path, wandb=WandbConfig(mode=WandbMode.offline, alerts=asked, **WANDB))
    t.train_step(step=1, **STEP)
    t.close(code)
    text = f"demo {tmp_path}: exit code {code}"
    assert wandb_alerts(tmp_path) == ([(sent[0], text, sent[1])] if sent else [])


def test_wandb_disabled_and_a_missing_wandb_change_nothing(tmp_path, monkeypatch, capsys):
    t = new_tracker(tmp_path, mode=WandbMode.disabled)
    t.train_step(step=1, **STEP)
    t.close()
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    t = new_tracker(tmp_path, mode=WandbMode.offline)
    t.train_step(step=1, **STEP)
    t.close()
    assert capsys.readouterr().out.count("warning: wandb: ModuleNotFoundError") == 1


def test_the_wandb_id_is_made_once(tmp_path):
    first = stored_wandb_id(tmp_path / "wandb_id")
    assert len(first) == 12 and stored_wandb_id(tmp_path / "wandb_id") == first
