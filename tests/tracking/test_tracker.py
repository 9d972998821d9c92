"""The record of a run: console lines, logs, metrics.jsonl, and a wandb that may go away at any time."""

import json
import logging
import os
import pty
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.wandb_files import wandb_records
from txl.config.geometry import Geometry
from txl.config.tracking import TrackingConfig, WandbConfig, WandbMode
from txl.system import console
from txl.system.console import is_terminal, printable, progress_line, seconds_left
from txl.tracking.metrics_file import cut_back
from txl.tracking.tracker import Tracker
from txl.tracking.wandb_sink import run_id

PROJECT = Path(__file__).resolve().parents[2]
GEOMETRY = Geometry(192, 192)
STEP = dict(epoch=18, batch=283, n_batches=2101, lr=1.22e-3, ms_per_batch=185.1, tokens_per_second=265585.4)
STEP |= dict(loss=3.123, grad_norm=0.5, tokens_seen=36000 * 49152)


@pytest.fixture(autouse=True)
def console_as_it_was():
    package = logging.getLogger("txl")
    handlers = list(package.handlers)
    yield
    package.handlers[:] = handlers


def tracker(run_dir, metric="ppl", is_main=True, rank=0, resume_step=None, mode=WandbMode.none, environment=False):
    return Tracker(
        run_dir,
        TrackingConfig(WandbConfig(mode=mode, project="txl", tags=[], job_type="train"), environment),
        run_config={"name": "demo", "seed": 1},
        metric=metric,
        max_step=40000,
        is_main=is_main,
        rank=rank,
        resume_step=resume_step,
    )


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------- the original's lines


def test_step_line_is_the_originals(tmp_path, capsys):
    t = tracker(tmp_path)
    t.train_step(step=36000, **STEP)
    t.close()
    line = (
        "| epoch  18 step    36000 | batches    283 / 2101 | lr 1.220e-03 | ms/batch 185.1 "
        "| tok/s  265585 | loss  3.12 | ppl     22.71"
    )
    assert capsys.readouterr().out.splitlines() == [line]
    assert (tmp_path / "train.log").read_text() == line + "\n"
    assert line in (tmp_path / "logs" / "rank_0.log").read_text()


def test_step_line_of_bytes_and_characters_ends_in_bits(tmp_path, capsys):
    t = tracker(tmp_path, metric="bpc")
    t.train_step(step=36000, **STEP | {"loss": 0.8557239})
    t.close()
    assert capsys.readouterr().out.splitlines()[0].endswith("| loss  0.86 | bpc   1.23455")


def test_validation_is_framed_and_carries_its_geometry(tmp_path, capsys):
    t = tracker(tmp_path)
    t.validation(
        number=7, step=35000, seconds=1.37, loss=3.1412, tokens=217646, geometry=GEOMETRY, batch_size=16, is_best=True
    )
    t.close()
    assert capsys.readouterr().out.splitlines() == [
        "-" * 100,
        "| Eval   7 at step    35000 | time:  1.37s | valid loss  3.14 | valid ppl    23.132"
        " | tgt_len 192 mem_len 192 clamp_len -1 same_length false batch 16",
        "-" * 100,
    ]


def test_end_of_training_has_test_block_time_and_throughput(tmp_path, capsys):
    t = tracker(tmp_path)
    t.test(split="test", seconds=10.33, loss=3.1486, tokens=9, geometry=GEOMETRY, batch_size=16, step=35000)
    t.summary({"train_seconds": 108.6, "tokens_per_second": 28508.912, "sample": "to be\x1b[2J or"})
    t.close()
    assert capsys.readouterr().out.splitlines() == [
        "-" * 100,
        "End of training",
        "=" * 100,
        "| End of training | test time: 10.33s | test loss  3.15 | test ppl    23.303"
        " | tgt_len 192 mem_len 192 clamp_len -1 same_length false batch 16",
        "=" * 100,
        "Training time: 1.81 minutes",
        "Training throughput: 28508.91 tok/s",
        "Sample:",
        "to be\N{REPLACEMENT CHARACTER}[2J or",
        f"Run folder: {tmp_path}",
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["tokens_per_second"] == 28508.912


def test_warnings_of_other_modules_reach_console_and_logs(tmp_path, capsys):
    t = tracker(tmp_path)
    logging.getLogger("txl.checkpoint.store").warning("step_%d is damaged; using the one before", 40)
    t.close()
    assert capsys.readouterr().out == "warning: step_40 is damaged; using the one before\n"
    assert "WARNING txl.checkpoint.store: step_40 is damaged" in (tmp_path / "logs" / "rank_0.log").read_text()


def test_other_ranks_write_their_own_log_only(tmp_path, capsys):
    t = tracker(tmp_path, is_main=False, rank=3)
    t.progress(36000, None, None)
    t.train_step(step=36000, **STEP)
    t.test(split="test", seconds=1.0, loss=3.0, tokens=9, geometry=GEOMETRY, batch_size=16, step=1)
    t.summary({"train_seconds": 1.0})
    t.close()
    assert capsys.readouterr().out == ""
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == ["logs/rank_3.log"]
    assert "step    36000" in (tmp_path / "logs" / "rank_3.log").read_text()


def test_without_a_run_folder_only_the_console_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = tracker(None)
    t.train_step(step=1, **STEP)
    t.summary({"train_seconds": 60.0})
    t.close()
    assert "Training time: 1.00 minutes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_environment_is_recorded_when_asked_for(tmp_path):
    tracker(tmp_path, environment=True).close()
    assert json.loads((tmp_path / "environment.json").read_text())["python"]


# --------------------------------------------------------------------------- metrics.jsonl


def test_metrics_hold_everything_and_are_there_at_once(tmp_path):
    t = tracker(tmp_path)
    t.train_step(step=36000, **STEP, loss_scale=65536.0)
    (train,) = records(tmp_path)  # before close: a killed run has lost nothing
    t.validation(number=1, step=36000, seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, is_best=False)
    t.test(split="test", seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, step=36000)
    t.close()
    assert {"kind": "train", "step": 36000, "loss_scale": 65536.0}.items() <= train.items()
    assert STEP.items() <= train.items()
    assert train["ppl"] == pytest.approx(22.7143, abs=1e-3)
    valid, test = records(tmp_path)[1:]
    shared = {"tgt_len": 192, "mem_len": 192, "clamp_len": -1, "same_length": False, "batch_size": 16, "tokens": 7}
    assert shared.items() <= valid.items() and shared.items() <= test.items()
    assert valid["is_best"] is False and test["split"] == "test"


def test_a_number_that_is_not_finite_becomes_null(tmp_path, capsys):
    t = tracker(tmp_path)
    t.train_step(step=1, **STEP | {"loss": float("nan"), "grad_norm": float("inf")})
    t.close()
    assert "| loss   nan | ppl       nan" in capsys.readouterr().out
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and records(tmp_path)[0]["loss"] is None


def test_resume_leaves_no_step_twice(tmp_path):
    t = tracker(tmp_path)
    for step in (10, 20, 30):
        t.train_step(step=step, **STEP)
    t.validation(number=1, step=20, seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, is_best=True)
    t.test(split="test", seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, step=20)
    t.close()
    t = tracker(tmp_path, resume_step=20)
    t.train_step(step=30, **STEP)
    t.close()
    assert [(r["kind"], r["step"]) for r in records(tmp_path)] == [
        ("train", 10), ("train", 20), ("valid", 20), ("train", 30)
    ]  # fmt: skip
    assert len((tmp_path / "train.log").read_text().splitlines()) > 4  # the log keeps the whole story


def test_a_fresh_start_in_an_old_folder_begins_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 10}\n')
    tracker(tmp_path).close()
    assert records(tmp_path) == []


def test_cut_back_keeps_whole_lines_wherever_the_file_was_torn(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step}) + "\n" for step in (1, 2, 3)]
    whole, path = "".join(lines).encode(), tmp_path / "metrics.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        cut_back(path, 2)
        kept = path.read_text()
        assert kept == "".join(lines[: min(2, whole[:size].count(b"\n"))])


def test_cut_back_counts_what_it_drops_and_keeps_other_kinds(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_back(path, 5) == 0
    path.write_text('{"kind": "train", "step": 9}\n{"kind": "note", "step": 9}\n[]\n{"kind": "test", "step": 1}\n{"ki')
    assert cut_back(path, 5) == 4
    assert path.read_text() == '{"kind": "note", "step": 9}\n'


# --------------------------------------------------------------------------- terminals and pipes

RUN = """
import os, signal, sys, time
from pathlib import Path
from txl.config.geometry import Geometry
from txl.config.tracking import TrackingConfig, WandbConfig, WandbMode
from txl.tracking.tracker import Tracker
from txl.tracking import wandb_sink
from txl.tracking.wandb_sink import children_named

run_dir, mode, act, steps, resume_step = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
wandb_sink.WANDB_PATIENCE = float(os.environ.get("PATIENCE", 25))
wandb = WandbConfig(mode=WandbMode[mode], project="txl", group="seeds", tags=["a", "b"], job_type="train")
config = {"name": "demo", "seed": 1, "model": {"n_layer": 4}}
tracker = Tracker(
    run_dir, TrackingConfig(wandb, False), run_config=config, metric="ppl", max_step=resume_step + steps,
    is_main=True, rank=0, resume_step=resume_step or None)
geometry = Geometry(64, 64)

def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)

log = run_dir / "train.log"
for step in range(resume_step + 1, resume_step + steps + 1):
    time.sleep(0.002)
    if step == resume_step + steps // 2 and act in ("kill", "stop"):
        until(lambda: "wandb: offline" in log.read_text())
        for pid in children_named("wandb-core"):
            os.kill(pid, signal.SIGKILL if act == "kill" else signal.SIGSTOP)
            print("wandb-core is gone")
    tracker.progress(step, None, None)
    tracker.train_step(
        epoch=1, step=step, batch=step, n_batches=9, lr=0.01, ms_per_batch=1.0, tokens_per_second=9.0, loss=3.0,
        grad_norm=1.0, tokens_seen=step)
tracker.validation(
    number=1, step=step, seconds=1.0, loss=2.5, tokens=9, geometry=geometry, batch_size=4, is_best=True)
if act == "raise":
    until(lambda: "wandb: offline" in log.read_text())
    raise RuntimeError("the training broke")
tracker.test(split="test", seconds=1.0, loss=2.5, tokens=9, geometry=geometry, batch_size=4, step=step)
tracker.summary({"train_seconds": 60.0, "test": {"loss": 2.5}})
began = time.monotonic()
tracker.close()
print(f"closed in {time.monotonic() - began:.1f} s")
"""


def environment(**extra):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return kept | {"PYTHONPATH": str(PROJECT), "TERM": "xterm"} | extra


def arguments(run_dir, mode="none", act="-", steps=30, resume_step=0):
    run_dir.mkdir(exist_ok=True)
    return [sys.executable, "-c", textwrap.dedent(RUN), str(run_dir), mode, act, str(steps), str(resume_step)]


def run(run_dir, *args, env=None, **options):
    command = arguments(run_dir, *args, **options)
    done = subprocess.run(command, env=environment(**env or {}), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def run_in_terminal(command, env):
    """Everything that a program writes to a terminal of 200 columns, and its exit code."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(command, env=env, stdout=terminal, stderr=terminal)
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(main, 65536):
            written += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(main)
    return written.decode(), process.wait(timeout=60)


def test_a_terminal_gets_a_bar_below_whole_lines(tmp_path):
    text, code = run_in_terminal(arguments(tmp_path, steps=400), environment(COLUMNS="200", LINES="40"))
    assert code == 0
    assert "loss 3.000" in text and "9 tok/s" in text and "ETA" in text and "/400" in text
    lines = text.replace("\r", "\n").split("\n")
    for step in range(1, 401):  # each exactly once, none broken by the bar
        assert sum(f"| epoch   1 step {step:>8d} | batches" in line for line in lines) == 1
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is back
    assert "/400" not in text[text.index("End of training") :]


def test_a_pipe_gets_plain_lines(tmp_path):
    code, text = run(tmp_path)
    assert code == 0 and "\x1b" not in text and "ETA" not in text and text.count("| epoch") == 30


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    text, code = run_in_terminal(arguments(tmp_path), environment(TERM="dumb"))
    assert code == 0 and "\x1b" not in text and "ETA" not in text
    assert not is_terminal(None)


def test_the_run_goes_on_when_nobody_reads_its_output(tmp_path):
    process = subprocess.Popen(arguments(tmp_path, steps=300), env=environment(), stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert len(records(tmp_path)) == 302


def test_output_in_a_narrow_encoding_loses_nothing(tmp_path, monkeypatch, capsys):
    class Ascii:
        encoding, text = "ascii", ""

        def write(self, text):
            self.text += text.encode("ascii").decode()

        def flush(self):
            pass

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Ascii())
    t = tracker(None)
    t.message("naïve")
    assert sys.stdout.text == "na\\xefve\n"


def test_text_of_a_model_cannot_drive_the_terminal():
    assert printable("a\x1b[31m\r\x07\n\tb 東京") == "a\ufffd[31m\ufffd\ufffd\n\tb 東京"


def test_the_bar_fits_the_terminal_and_tells_the_time_left():
    line = progress_line(300, 600, 3.1234, 12345.6, seconds_left(100, 300, 1240.0), 80)
    assert line.endswith("─ 300/600  loss 3.123  12,346 tok/s  ETA 1:02:00") and len(line) == 79
    assert line.count("━") == 16 == line.count("─")
    assert progress_line(0, 600, None, None, seconds_left(0, 600, 1.0), 20) == "─" * 13 + " 0/600"
    assert progress_line(1, 600, 3.0, 1.0, 2.0, 30) == "1/600  loss 3.000  1 tok/s  ETA 0:00:02"  # too narrow for a bar


def test_the_bar_is_drawn_a_few_times_a_second_only(monkeypatch, capsys):
    now, drawn = [100.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    bar = console.ProgressBar(1000, 0)
    monkeypatch.setattr(bar._live, "update", lambda text, refresh: drawn.append(now[0]))
    for step in range(1000):
        now[0] += 0.001
        if bar.is_due():
            bar.show(step, None, None)
    bar.close()
    assert 1 <= len(drawn) <= 10  # in one second


# --------------------------------------------------------------------------- wandb


def assert_complete(run_dir, steps=30):
    found = records(run_dir)
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, steps + 1))
    assert [r["kind"] for r in found[steps:]] == ["valid", "test"]
    assert (run_dir / "summary.json").exists()


def test_wandb_offline_holds_the_whole_run(tmp_path):
    code, text = run(tmp_path, "offline")
    assert code == 0, text
    assert_complete(tmp_path)
    ((record, rows, summary),) = wandb_records(tmp_path)
    assert (record.project, record.run_group, record.job_type) == ("txl", "seeds", "train")
    assert list(record.tags) == ["a", "b"]
    assert record.display_name == f"demo-{tmp_path.name}"
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert {"name": "demo", "seed": 1, "model": {"n_layer": 4}}.items() <= config.items()
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 31))
    assert rows[0]["train/loss"] == 3.0 and rows[0]["train/lr"] == 0.01
    assert any(row.get("valid/loss") == 2.5 and row["_step"] == 30 for row in rows)
    assert summary["train_seconds"] == 60.0


def test_a_resumed_run_is_the_same_wandb_run(tmp_path):
    assert run(tmp_path, "offline")[0] == 0
    code, text = run(tmp_path, "offline", resume_step=20, steps=20)
    assert code == 0, text
    (first, _, _), (second, rows, _) = wandb_records(tmp_path)
    assert first.run_id == second.run_id == (tmp_path / "wandb_id").read_text().strip()
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(21, 41))
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "train"] == list(range(1, 41))


def test_an_unreachable_wandb_costs_a_warning(tmp_path):
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "PATIENCE": "3"}
    began = time.monotonic()
    code, text = run(tmp_path, "online", env=env)
    assert code == 0, text
    assert time.monotonic() - began < 30
    assert text.count("warning: wandb: ") == 1 and "the run goes on without it" in text
    assert_complete(tmp_path)


def test_a_server_that_never_answers_costs_a_warning(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "PATIENCE": "3"}
        began = time.monotonic()
        code, text = run(tmp_path, "online", env=env)
    assert code == 0, text
    assert time.monotonic() - began < 30 and text.count("warning: wandb: ") == 1
    assert_complete(tmp_path)


def test_wandb_without_a_key_does_not_ask_for_one(tmp_path):
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    text, code = run_in_terminal(arguments(tmp_path, "online"), environment(**env))
    assert code == 0 and text.count("warning: wandb: ") == 1
    assert_complete(tmp_path)


def test_a_killed_wandb_service_costs_a_warning(tmp_path):
    code, text = run(tmp_path, "offline", "kill")
    assert code == 0, text
    assert "wandb-core is gone" in text and text.count("warning: wandb: ") == 1
    assert "Traceback" not in text
    assert_complete(tmp_path)


def test_a_stalled_wandb_service_is_not_waited_for(tmp_path):
    began = time.monotonic()
    code, text = run(tmp_path, "offline", "stop", env={"PATIENCE": "2"})
    assert code == 0, text
    assert time.monotonic() - began < 30 and "did not finish in time" in text
    assert_complete(tmp_path)


def test_a_training_that_breaks_ends_at_once_and_with_its_own_error(tmp_path):
    code, text = run(tmp_path, "offline", "raise")
    assert code == 1 and "RuntimeError: the training broke" in text
    ((_, rows, _),) = wandb_records(tmp_path)
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 31))


def test_wandb_disabled_and_a_missing_wandb_change_nothing(tmp_path, monkeypatch, capsys):
    t = tracker(tmp_path, mode=WandbMode.disabled)
    t.train_step(step=1, **STEP)
    t.close()
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    t = tracker(tmp_path, mode=WandbMode.offline)
    t.train_step(step=1, **STEP)
    t.close()
    assert capsys.readouterr().out.count("warning: wandb: ModuleNotFoundError") == 1


def test_the_wandb_id_is_made_once(tmp_path):
    first = run_id(tmp_path / "wandb_id")
    assert len(first) == 12 and run_id(tmp_path / "wandb_id") == first
