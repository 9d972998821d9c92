"""Records that a crash of the machine lost or damaged: what is left is read, and what is missing is named."""

import json
import os
from pathlib import Path

import pytest

from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint import store
from txl.report.__main__ import main as report
from txl.report.runs import read_run


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides of a run that logs every two steps and saves every three."""
    text = write_corpus(tmp_path_factory.mktemp("text"))
    return [*text, *TINY_RUN, "scheduler=constant", "train.log_interval=2", "checkpoint.interval=3"]


def lines_of(run: Path) -> list[bytes]:
    return (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def test_records_are_on_the_disk_before_a_checkpoint_is(options, tmp_path, monkeypatch):
    """What a power cut leaves, at every checkpoint: a file that was not synchronized is as it was before."""
    fsync, synced, checkpoints = os.fsync, {}, []

    def note(descriptor):
        fsync(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith("metrics.jsonl"):
            synced[name] = Path(name).read_bytes()

    publish = store.publish_checkpoint

    def published(partial, final):
        publish(partial, final)
        step = int(final.name.removeprefix("step_"))
        (durable,) = synced.values()
        checkpoints.append((step, [json.loads(line)["step"] for line in durable.splitlines()]))

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(store, "publish_checkpoint", published)
    train_here(*options, "valid.enabled=false", "train.max_step=8", f"run_dir={tmp_path}/run")
    assert checkpoints == [(3, [2]), (6, [2, 4, 6]), (8, [2, 4, 6, 8])]


def test_all_records_are_on_the_disk_before_the_summary_is(options, tmp_path, monkeypatch):
    """A run that has a summary is finished: the next start would not add what a power cut took."""
    fsync, replace, synced, at_summary = os.fsync, os.replace, [], []

    def note(descriptor):
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            synced.append((tmp_path / "run" / "metrics.jsonl").read_bytes())

    def replaced(source, target, **options):
        if str(target).endswith("summary.json"):
            at_summary.append(synced[-1])
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", replaced)
    train_here(*options, "train.max_step=4", f"run_dir={tmp_path}/run")
    assert at_summary == [(tmp_path / "run" / "metrics.jsonl").read_bytes()]
    assert json.loads(at_summary[0].splitlines()[-1])["kind"] == "test"


def test_a_resume_and_a_report_name_the_steps_whose_records_are_gone(options, tmp_path, capsys):
    run = tmp_path / "run"
    train_here(*options, "train.max_step=9", f"run_dir={run}")
    (run / "metrics.jsonl").write_bytes(b"".join(lines_of(run)[:2]))
    capsys.readouterr()
    train_here(*options, "train.max_step=14", f"run_dir={run}", "resume=auto")
    said = capsys.readouterr().out
    assert "metrics.jsonl has no train records of steps 5 to 8: they were lost in a crash" in said
    assert "metrics.jsonl has no valid records of steps 1 to 9" in said
    assert [record["step"] for record in metrics(run)] == [2, 4, 10, 12, 14]
    assert report([str(run)]) == 0
    assert "has no train records of steps 5 to 8" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_losses_of_records_has_no_notes(options, tmp_path, capsys):
    run = tmp_path / "run"
    train_here(*options, "train.max_step=5", f"run_dir={run}")
    train_here(*options, "train.max_step=7", f"run_dir={run}", "resume=auto", "train.log_interval=3")
    train_here(*options, "train.max_step=14", f"run_dir={run}", "resume=auto", "train.log_interval=2")
    assert [(record["step"], record["steps"]) for record in metrics(run)] == [
        (2, 2), (4, 2), (6, 2), (8, 2), (10, 2), (12, 2), (14, 2)
    ]  # fmt: skip
    assert read_run(run).notes == [] and "lost in a crash" not in capsys.readouterr().out


DAMAGE = {
    "zero bytes": bytes(80),
    "empty": b"",
    "half": b'{"kind": "train", "st',
    "not UTF-8": b"\xff\xfe{",
    "a number": b"3",
    "without a step": b'{"kind": "train", "loss": 1.0}',
    "without a loss": b'{"kind": "train", "step": 1}',
    "nested deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_in_the_middle_is_left_out_and_counted(damage, tmp_path):
    whole = [{"kind": "train", "step": step, "steps": 1, "loss": 3.0} for step in (1, 2, 3)]
    lines = [json.dumps(record).encode() for record in whole]
    lines[1] = damage
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = read_run(tmp_path)
    assert run.metrics.train.step == [1, 3]
    assert run.notes == [
        f"{tmp_path}/metrics.jsonl has no train records of steps 2 to 2: they were lost in a crash",
        f"{tmp_path}/metrics.jsonl: 1 line damaged by a crash, and left out",
    ]
