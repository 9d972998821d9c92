"""What became of runs, from their folders alone; and stopping them."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.entry_points import PROJECT, command, environment
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.launch import __main__ as launching
from txl.launch.status import started_runs_below, status_table, time_left
from txl.tracking.metrics_file import last_records

CONFIG = "name: a\nseed: {seed}\ntrain: {{max_step: 600, lr: {lr}}}\n"


def write_run(folder, seed=1, lr=0.1, records=(), **files):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, lr=lr))
    (folder / "plan.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return folder


def record(kind, step, loss=2.5, **more):
    return {"kind": kind, "step": step, "loss": loss, "ms_per_batch": 1000.0} | more


def test_the_table_shows_steps_of_the_total_and_the_validation(tmp_path):
    write_run(tmp_path / "x" / "one", 1, records=[record("train", 100), record("valid", 100, 2.25)], summary="{}")
    write_run(tmp_path / "x" / "two", 2, records=[record("train", 7, None)])
    lines = [line.split() for line in status_table([tmp_path / "x/one", tmp_path / "x/two"]).splitlines()]
    assert lines[0] == ["point", "job", "state", "step", "loss", "valid", "nodes", "restarts"]
    assert lines[1] == ["seed=1", "local", "COMPLETED", "100/600", "2.5000", "2.2500", "-", "0"]
    assert lines[2] == ["seed=2", "local", "STOPPED", "7/600", "not", "finite", "-", "-", "0"]


def test_a_long_name_is_shortened_to_120_columns(tmp_path):
    runs = [write_run(tmp_path / str(i), seed=i, lr=f"'{'x' * 150}{i}'") for i in range(2)]
    assert all(len(line) <= 120 for line in status_table(runs).splitlines())


def test_an_evaluation_that_was_submitted_stands_below_its_run_with_why_it_failed(tmp_path):
    run = write_run(tmp_path / "run", records=[record("train", 600)], summary="{}")
    evaluation = run / "evaluations" / "3661881a"
    for file, text in {
        "config.yaml": "name: evaluate\nseed: 1\nsplit: test\n",
        "slurm/job.json": '{"job": "17", "log": "17_0_log.out"}',
        "logs/rank_0.error": "error: hardware=dgx1 needs GPUs, but torch was built without CUDA; " + 100 * "x",
    }.items():
        (evaluation / file).parent.mkdir(parents=True, exist_ok=True)
        (evaluation / file).write_text(text)
    assert started_runs_below(tmp_path) == [run, evaluation]
    header, first, second = status_table(started_runs_below(tmp_path)).splitlines()
    assert first.startswith("a seed=1 ") and header.endswith("reason")
    assert second.split()[:3] == ["run/evaluations/3661881a", "17", "FAILED"] and len(second) == 120
    assert "hardware=dgx1 needs GPUs" in second
    (evaluation / "logs" / "rank_0.error").unlink()
    (evaluation / "result.json").write_text("{}")
    assert " COMPLETED " in status_table([evaluation])


def test_what_is_computed_differently_is_named_before_machines_and_intervals(tmp_path):
    runs = [write_run(tmp_path / str(i), seed=i, lr=i) for i in range(2)]
    for i, run in enumerate(runs):
        with open(run / "config.yaml", "a") as file:
            file.write(f"checkpoint: {{interval: {i}}}\ncluster: {{kind: k{i}}}\n")
    names = [line.partition("  ")[0] for line in status_table(runs).splitlines()[1:]]
    assert names == [f"train.lr={i} seed={i} checkpoint.interval={i} cluster.kind=k{i}" for i in range(2)]


def test_the_newest_records_are_found_behind_a_thousand_others_and_damaged_lines(tmp_path):
    records = [record("valid", 5)] + [record("train", step, text="é" * 50) for step in range(1, 3000)]
    run = write_run(tmp_path / "run", records=records)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(bytes(80) + b'\n{"kind": "train", "st')
    train, valid = last_records(run, "train", "valid")
    assert train["step"] == 2999 and valid["step"] == 5


def test_the_time_left_follows_from_the_pace():
    assert time_left(record("train", 500), 600) == "0:01:40"
    assert time_left({}, 600) == ""


@pytest.mark.parametrize("arguments", [[], ["stop"]])
def test_an_unknown_command_says_how_it_is_used(arguments, capsys):
    assert launching.main(arguments) == 2
    assert "usage: python -m txl.launch status|cancel FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["status", "cancel"])
def test_a_folder_without_runs_is_refused(name, tmp_path, capsys):
    assert launching.main([name, str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_looking_at_a_read_only_run_writes_nothing(tmp_path, capsys):
    run = write_run(tmp_path / "run", records=[record("train", 3)])
    (run / ".lock").touch()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir())
    assert launching.main(["status", str(run)]) == 0
    assert "STOPPED" in capsys.readouterr().out
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir()) == before


def test_cancel_lets_a_local_run_save_and_stop(tmp_path):
    run = tmp_path / "run"
    overrides = [*write_corpus(tmp_path / "text"), *TINY_RUN, "train.max_step=100000", f"run_dir={run}"]
    process = subprocess.Popen(
        command("train.py", *overrides), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((run / "metrics.jsonl").exists() and last_records(run, "train")[0]):
        time.sleep(0.05)
    done = subprocess.run(
        [command("train.py")[0], "-m", "txl.launch", "cancel", str(run)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    out, _ = process.communicate(timeout=60)
    assert done.returncode == 0 and "asked to save and stop" in done.stdout, done.stdout + done.stderr
    assert process.returncode == 128 + signal.SIGTERM and "saved. Continue with resume=auto" in out
