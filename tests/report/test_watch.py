"""Watching runs while they go on."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.support.made_runs import line, usual_lines, write_run, write_sweep
from tests.support.recording_processes import environment, run_in_terminal
from txl.report.__main__ import main
from txl.report.watch import FollowedRun, sparkline, watch_table


def going_on(folder, step: int, seed: int = 1, max_step: int = 300):
    """A run that another process trains: it holds the lock."""
    lines = [line("train", s, 3.0 + 5 / s, ms_per_batch=1000.0) for s in range(10, step + 1, 10)]
    run = write_run(folder, [*lines, line("valid", step, 3.5)], seed, False, train__max_step=max_step)
    lock = open(run / ".lock", "w")  # noqa: SIM115 (held until the test ends)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return run, lock


def looked_at(*folders) -> list[FollowedRun]:
    followed = [FollowedRun(folder) for folder in folders]
    for one in followed:
        one.look()
    return followed


def test_the_table_shows_state_progress_time_left_and_losses(tmp_path):
    run, lock = going_on(tmp_path / "a" / "x-s1", 100)
    done = write_run(tmp_path / "a" / "x-s2", usual_lines(), 2, train__max_step=300)
    table = watch_table(looked_at(run, done), 20)
    first, second = table.rows
    assert (first["run"], first["state"], first["step"]) == ("a seed=1", "running", "100/300")
    assert first["left"] == 200 and first["valid"] == 3.5 and first["curve"][0] == "█" and first["curve"][-1] == "▁"
    assert second["state"] == "finished" and second["left"] is None
    assert table.title.startswith("1 running, 1 finished · 3:20 left · best valid 3.100: a seed=2")


def test_only_new_lines_are_read_and_a_run_that_was_cut_back_is_read_again(tmp_path):
    run, lock = going_on(tmp_path / "a-s1", 100)
    (one,) = looked_at(run)
    before = one.position
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line("train", 110, 9.0)) + "\n" + '{"kind": "train", "st')
    one.look()
    assert one.losses[-1] == 9.0 and len(one.losses) == 11 and one.position > before
    (run / "metrics.jsonl").write_text(json.dumps(line("train", 10, 4.0)) + "\n")
    one.look()
    assert one.losses == [4.0] and one.train["step"] == 10


def test_more_runs_than_lines_of_the_terminal_show_those_that_go_on(tmp_path):
    done = [write_run(tmp_path / f"a-s{seed}", usual_lines(), seed) for seed in range(2, 12)]
    run, lock = going_on(tmp_path / "a-s1", 100)
    table = watch_table(looked_at(*done, run), 4)
    assert len(table.rows) == 4 and table.rows[0]["state"] == "running" and table.notes == ["... and 7 more"]


def test_a_sparkline_averages_a_long_curve():
    assert sparkline([]) == "" and sparkline([3.0]) == "▁"
    assert sparkline([4, 3, 2, 1], 4) == "█▆▃▁"
    assert sparkline([1.0] * 500 + [2.0] * 500, 4) == "▁▁██"


def test_watching_ends_with_the_table_of_results_when_all_runs_have_ended(tmp_path, capsys):
    write_sweep(tmp_path)
    run, lock = going_on(tmp_path / "sweep" / "late-s1", 100)

    def finish():
        time.sleep(0.5)
        (run / "summary.json").write_text("{}")
        lock.close()

    threading.Thread(target=finish).start()
    assert main([str(tmp_path), "--watch", "--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "1 running, 9 finished" in said and "10 finished" in said
    assert said.index("1 running") < said.index("best: optimizer.lr=0.01")


def test_on_a_terminal_the_table_is_drawn_in_place(tmp_path):
    write_sweep(tmp_path)
    command = [sys.executable, "-m", "txl.report", str(tmp_path), "--watch"]
    text, code = run_in_terminal(command, environment(COLUMNS="80", LINES="40"))
    assert code == 0
    assert "9 finished" in text and "lr=0.01 seed=2" in text and "█" in text and "3 seeds" in text


def test_no_line_is_longer_than_the_terminal_and_every_run_has_its_seed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for seed in (1, 2):
        for name in ("a", "b"):
            lines, init = usual_lines(0.1 * seed), f"{name * 60}{name}"
            write_run(tmp_path / "x" / f"{name}-s{seed}", lines, seed, model__init=init, train__max_step=200_000)
    assert main([str(tmp_path), "--watch"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 80
    rows = [line.rstrip() for line in said if line.endswith("█▄▂▂▂▁▁▁▁▁▁▁▁▁▁▁")]
    assert [row.split()[1] for row in rows] == ["seed=1", "seed=2"] * 2 and "best valid  training loss" in said[2]


def test_watching_results_alone_is_one_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"machine": {}, "rows": []}))
    assert main([str(tmp_path / "a.json"), "--watch"]) == 2
    assert "--watch needs run folders" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_slurm_is_asked_about_runs_that_wait_or_run(tmp_path, monkeypatch, state):
    run = write_run(tmp_path / "a-s1", [], finished=False)
    (run / "slurm").mkdir()
    (run / "slurm" / "job.json").write_text(json.dumps({"job": "17_2", "log": "x"}))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=18 JobState={state} Reason=Priority\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (one,) = looked_at(run)
    assert (one.state.word, one.state.why) == (state.lower(), "Priority")


def test_a_narrow_encoding_gets_the_curve_in_digits(tmp_path):
    write_sweep(tmp_path, rates=(0.01,), seeds=(1,))
    command = [sys.executable, "-m", "txl.report", str(tmp_path), "--watch"]
    env = environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "84222111" in done.stdout, done.stderr
