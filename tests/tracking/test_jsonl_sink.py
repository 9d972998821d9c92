"""metrics.jsonl: complete, written at once, strict JSON, and no step twice."""

import json

import pytest

from tests.support.tracked_runs import GEOMETRY, STEP, new_tracker, records, tracked_run
from txl.tracking.jsonl_sink import JsonlSink
from txl.tracking.rewind_file import drop_later_lines


def test_metrics_hold_everything_and_are_there_at_once(tmp_path):
    t = new_tracker(tmp_path)
    t.train_step(step=36000, **STEP, loss_scale=65536.0)
    (train,) = records(tmp_path)  # before close: a killed run has lost nothing
    t.validation(step=36000, seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, is_best=False)
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
    t = new_tracker(tmp_path)
    t.train_step(step=1, **STEP | {"loss": float("nan"), "grad_norm": float("inf")})
    t.close()
    assert "| loss    nan | ppl      nan" in capsys.readouterr().out
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and records(tmp_path)[0]["loss"] is None


def test_resume_leaves_no_step_twice(tmp_path):
    t = new_tracker(tmp_path)
    for step in (10, 20, 30):
        t.train_step(step=step, **STEP)
    t.validation(step=20, seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, is_best=True)
    t.test(split="test", seconds=2, loss=3.0, tokens=7, geometry=GEOMETRY, batch_size=16, step=20)
    t.close()
    t = new_tracker(tmp_path, resume_step=20)
    t.train_step(step=30, **STEP)
    t.close()
    assert [(r["kind"], r["step"]) for r in records(tmp_path)] == [
        ("train", 10), ("train", 20), ("valid", 20), ("train", 30)
    ]  # fmt: skip
    assert len((tmp_path / "train.log").read_text().splitlines()) > 4  # the log keeps the whole story


def test_a_fresh_start_in_an_old_folder_begins_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 10}\n')
    new_tracker(tmp_path).close()
    assert records(tmp_path) == []


def rewind(folder, step):
    sink = JsonlSink(folder, tracked_run())
    sink.rewind(step)
    sink.close(0)


def test_rewinding_keeps_whole_lines_wherever_the_file_ends(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step}) + "\n" for step in (1, 2, 3)]
    whole, path = "".join(lines).encode(), tmp_path / "metrics.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        rewind(tmp_path, 2)
        kept = path.read_text()
        assert kept == "".join(lines[: min(2, whole[:size].count(b"\n"))])


def test_rewinding_keeps_other_kinds_of_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 9}\n{"kind": "note", "step": 9}\n[]\n{"kind": "test", "step": 1}\n{"ki')
    rewind(tmp_path, 5)
    assert path.read_text() == '{"kind": "note", "step": 9}\n'


def test_a_resume_reads_only_the_end_of_a_long_record_and_leaves_the_same_as_reading_all_of_it(tmp_path):
    lines = [b'{"kind": "train", "step": %d, "loss": 1}\n' % step for step in range(1, 60_001)]
    lines[-5:-5] = [b'{"kind": "note"}\n', b'{"kind": "test", "step": 59990}\n', b'{"kind": "train", "step"\n']
    for step, added in ((59_990, b""), (59_999, b'{"kind": "tr'), (20_000, b""), (60_000, b""), (0, b"")):
        file, read = tmp_path / "records", []
        file.write_bytes(b"".join(lines) + added)

        def is_kept(line: bytes, step: int, read: list = read) -> bool:
            read.append(line)
            try:
                record = json.loads(line)
            except ValueError:
                return False
            return record["kind"] == "note" or (record["kind"] == "train" and record["step"] <= step)

        expected = b"".join(line for line in [*lines, added] if line and is_kept(line, step))
        read.clear()
        drop_later_lines(file, step, is_kept)
        assert file.read_bytes() == expected
        assert step < 50_000 or len(read) < 20_000
