"""Reading metrics.jsonl: fast, with little memory, and whatever is damaged in it."""

import json
import os
import time
import tracemalloc

from tests.support.made_runs import line
from txl.tracking.metrics_file import last_records, read_metrics
from txl.tracking.rewind_file import drop_later_lines


def write(path, records, end=b""):
    path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records) + end)
    return path


def test_every_record_of_a_short_file_is_read_exactly(tmp_path):
    records = [line("train", step, 3.0 + 1 / step) for step in range(1, 31)]
    metrics = read_metrics(write(tmp_path / "m", [*records, line("valid", 30, 2.5), line("test", 30, 2.25)]))
    assert metrics.train.step == list(range(1, 31)) and metrics.damaged == 0
    assert metrics.train.loss == [record["loss"] for record in records]
    assert metrics.train.tokens[-1] == 30_000 and metrics.train.last == records[-1]
    assert metrics.valid == [line("valid", 30, 2.5)] and metrics.test == [line("test", 30, 2.25)]


def test_neighbours_of_a_long_curve_are_averaged(tmp_path):
    records = [line("train", step, float(step % 2)) for step in range(1, 10_001)]
    curve = read_metrics(write(tmp_path / "m", records), points=100).train
    assert 90 <= len(curve.step) <= 110 and curve.step[-1] == 10_000 and set(curve.loss[:-1]) == {0.5}


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = write(tmp_path / "m", [line("train", 1, 3.0)], end=b'{"kind": "train", "st')
    assert read_metrics(path).train.step == [1] and read_metrics(path).damaged == 0


def test_damaged_lines_are_counted_and_everything_else_is_read(tmp_path):
    good = [json.dumps(line("train", step, 3.0)).encode() for step in range(1, 5)]
    torn = [bytes(80), b"", b'{"kind": "train", "step": 2, "lo', b"null", b"[1]", b'{"kind": "valid"}', b"\xff\xfe"]
    (tmp_path / "m").write_bytes(b"\n".join([good[0], *torn, *good[1:]]) + b"\n")
    metrics = read_metrics(tmp_path / "m")
    assert metrics.train.step == [1, 2, 3, 4] and metrics.damaged == len(torn)


def test_losses_that_are_not_finite_are_known_by_their_step(tmp_path):
    records = [line("train", step, None if step in (7, 9) else 3.0) for step in range(1, 21)]
    curve = read_metrics(write(tmp_path / "m", records), points=4).train
    assert curve.not_finite == [7, 9] and set(curve.loss) == {3.0}
    only = read_metrics(write(tmp_path / "n", [line("train", 1, 3.0), line("train", 2, None)])).train
    assert only.loss == [3.0, None]


def test_steps_without_lines_are_found_within_a_point_and_between_points(tmp_path):
    steps = [step for step in range(2, 2001, 2) if step not in (500, 502, 1000)]
    records = [line("train", step, 3.0, steps=2) for step in steps]
    for points in (10, 100, 10_000):
        assert read_metrics(write(tmp_path / "m", records), points).gaps == [(499, 502), (999, 1000)]


def test_loss_spikes_are_known_by_their_step(tmp_path):
    records = [line("train", step, 3.0, **({"spike": True} if step in (7, 8) else {})) for step in range(1, 21)]
    assert read_metrics(write(tmp_path / "m", records), points=4).train.spikes == [7, 8]


def test_lines_of_another_writer_are_read_as_well(tmp_path):
    (tmp_path / "m").write_text('{"step":1,"loss":3.5,"kind":"train"}\n{"kind":"replay","text":"x"}\n')
    metrics = read_metrics(tmp_path / "m")
    assert metrics.train.loss == [3.5] and metrics.damaged == 0


def test_a_hundred_thousand_lines_take_half_a_second_and_a_part_of_them_lies_in_memory(tmp_path):
    """A million take ten times as long: the promise is five seconds and 500 MB."""
    more = dict(epoch=1, batch=2, n_batches=3, lr=0.01, ms_per_batch=185.123, grad_norm=0.5)
    block = "".join(json.dumps(line("train", step, 3.0 + 1 / step, **more)) + "\n" for step in range(1, 10_001))
    (tmp_path / "m").write_text(block * 10)
    began = time.process_time()
    assert len(read_metrics(tmp_path / "m").train.step) <= 2000
    assert time.process_time() - began < 0.5
    (tmp_path / "m").write_text(block * 3)
    tracemalloc.start()
    read_metrics(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()


def test_a_line_of_gigabytes_is_damage_and_takes_no_memory(tmp_path):
    record = b'{"kind": "train", "step": 1, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(record)
    os.truncate(tmp_path / "metrics.jsonl", 1 << 27)  # zeros, as after a crash of the machine; no room on the disk
    tracemalloc.start()
    assert last_records(tmp_path, "train", "valid") == [{"kind": "train", "step": 1, "loss": 2.0}, {}]
    assert read_metrics(tmp_path / "metrics.jsonl").train.step == [1]
    drop_later_lines(tmp_path / "metrics.jsonl", 1, lambda line, step: line == record)
    assert (tmp_path / "metrics.jsonl").read_bytes() == record
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
