"""What people see of a run: lines on the console and in the logs, and a progress bar in a terminal."""

import io
import json
import logging
import subprocess
import sys
import time

from tests.support.recording_processes import command_that_records, environment, record_in_process, run_in_terminal
from tests.support.tracked_runs import GEOMETRY, STEP, new_tracker, records, tracked_run
from txl.system import console
from txl.system.console import is_terminal, printable, progress_line, seconds_left
from txl.tracking.console_sink import ConsoleSink


def test_a_step_is_one_line_of_less_than_80_columns(tmp_path, capsys):
    t = new_tracker(tmp_path)
    t.train_step(step=36000, **STEP)
    t.train_step(step=1, **STEP | {"loss": 12.49, "epoch": 107, "tokens_per_second": 1189700.0})
    t.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 18 step 36000 | lr 1.22e-03 | tok/s  265585 | loss  3.123 | ppl    22.71",
        "epoch 107 step     1 | lr 1.22e-03 | tok/s 1189700 | loss 12.490 | ppl 265667.29",
    ]
    assert all(len(line) <= 80 for line in lines)
    assert (tmp_path / "train.log").read_text().splitlines() == lines
    assert lines[0] in (tmp_path / "logs" / "rank_0.log").read_text()


def test_step_line_of_bytes_and_characters_ends_in_bits(tmp_path, capsys):
    t = new_tracker(tmp_path, metric="bpc")
    t.train_step(step=36000, **STEP | {"loss": 0.8557239})
    t.close()
    assert capsys.readouterr().out.splitlines()[0].endswith("| loss  0.856 | bpc  1.23455")


def test_validation_is_framed_and_carries_its_geometry(tmp_path, capsys):
    t = new_tracker(tmp_path)
    result = dict(seconds=1.37, tokens=217646, geometry=GEOMETRY, batch_size=16)
    t.validation(step=35000, loss=3.1412, is_best=True, **result)
    t.validation(step=40000, loss=3.1501, is_best=False, **result)
    t.close()
    geometry = "  tgt_len 192 mem_len 192 clamp_len -1 same_length false batch 16"
    assert capsys.readouterr().out.splitlines() == [
        "-" * 79,
        "Eval 7 at step 35000 | 1.37 s | valid loss 3.141 | ppl 23.13 | best",
        geometry,
        "-" * 79,
        "-" * 79,
        "Eval 8 at step 40000 | 1.37 s | valid loss 3.150 | ppl 23.34",
        geometry,
        "-" * 79,
    ]


def test_end_of_training_has_test_block_time_and_throughput(tmp_path, capsys):
    t = new_tracker(tmp_path)
    t.test(split="test", seconds=10.33, loss=3.1486, tokens=9, geometry=GEOMETRY, batch_size=16, step=35000)
    t.summary({"train_seconds": 108.6, "tokens_per_second": 28508.912, "sample": "to be\x1b[2J or"})
    t.close()
    assert capsys.readouterr().out.splitlines() == [
        "End of training",
        "=" * 79,
        "Test at step 35000 | 10.33 s | test loss 3.149 | ppl 23.30",
        "  tgt_len 192 mem_len 192 clamp_len -1 same_length false batch 16",
        "=" * 79,
        "Training time: 1.81 minutes",
        "Training throughput: 28508.91 tok/s",
        "Sample:",
        "to be\N{REPLACEMENT CHARACTER}[2J or",
        f"Run folder: {tmp_path}",
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["tokens_per_second"] == 28508.912


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_has_colour_and_files_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    record = logging.LogRecord("txl", logging.INFO, "", 0, "Eval | best", (), None)
    record.style = "bold green"
    for no_color, expected in (("", "\x1b[1;32mEval | best\x1b[0m\n"), ("1", "Eval | best\n")):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys, "stdout", Terminal())
        console.ConsoleHandler().emit(record)
        assert sys.stdout.getvalue() == expected


def test_warnings_of_other_modules_reach_console_and_logs(tmp_path, capsys):
    t = new_tracker(tmp_path)
    logging.getLogger("txl.checkpoint.store").warning("step_%d is damaged; using the one before", 40)
    t.close()
    assert capsys.readouterr().out == "warning: step_40 is damaged; using the one before\n"
    assert "WARNING txl.checkpoint.store: step_40 is damaged" in (tmp_path / "logs" / "rank_0.log").read_text()


def test_other_ranks_write_their_own_log_only(tmp_path, capsys):
    t = new_tracker(tmp_path, rank=3)
    t.progress(36000)
    t.train_step(step=36000, **STEP)
    t.test(split="test", seconds=1.0, loss=3.0, tokens=9, geometry=GEOMETRY, batch_size=16, step=1)
    t.summary({"train_seconds": 1.0})
    t.close()
    assert capsys.readouterr().out == ""
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == ["logs/rank_3.log"]
    assert "step 36000" in (tmp_path / "logs" / "rank_3.log").read_text()


def test_without_a_run_folder_only_the_console_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = new_tracker(None)
    t.train_step(step=1, **STEP)
    t.summary({"train_seconds": 60.0})
    t.close()
    assert "Training time: 1.00 minutes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_terminal_gets_a_bar_below_whole_lines(tmp_path):
    text, code = run_in_terminal(command_that_records(tmp_path, steps=400), environment(COLUMNS="200", LINES="40"))
    assert code == 0
    assert "loss 3.000" in text and "9 tok/s" in text and "ETA" in text and "/400" in text
    lines = text.replace("\r", "\n").split("\n")
    for step in range(1, 401):  # each exactly once, none broken by the bar
        assert sum(f"epoch  1 step {step:>3d} | lr" in line for line in lines) == 1
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is back
    assert "/400" not in text[text.index("End of training") :]


def test_a_pipe_gets_plain_lines(tmp_path):
    code, text = record_in_process(tmp_path)
    assert code == 0 and "\x1b" not in text and "ETA" not in text and text.count("epoch  1 step") == 30


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    text, code = run_in_terminal(command_that_records(tmp_path), environment(TERM="dumb"))
    assert code == 0 and "\x1b" not in text and "ETA" not in text
    assert not is_terminal(None)


def test_the_run_goes_on_when_nobody_reads_its_output(tmp_path):
    process = subprocess.Popen(command_that_records(tmp_path, steps=300), env=environment(), stdout=subprocess.PIPE)
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
    t = new_tracker(None)
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
    monkeypatch.setattr("rich.live.Live.update", lambda self, text, refresh: drawn.append(now[0]))
    bar = console.ProgressBar(1000, 0)
    for step in range(1000):
        now[0] += 0.001
        if bar.is_due():
            bar.show(step, None, None)
    bar.close()
    assert 1 <= len(drawn) <= 10  # in one second


def test_logs_of_a_long_run_stay_below_a_size(tmp_path):
    sink = ConsoleSink(tmp_path, tracked_run(rotate_mb=1), rank=1)
    for _ in range(30):
        logging.getLogger("txl").info("%s", "x" * 100_000)
    sink.close(0)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert sizes.keys() == {"rank_1.log", "rank_1.log.1"} and max(sizes.values()) <= 1_000_000
