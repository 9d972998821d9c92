"""Whether the disk has room for a run's checkpoints is known before the first step."""

import logging
import shutil
from collections import namedtuple

import pytest

from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.errors import ConfigError


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train on a disk with so many bytes left."""
    text = write_corpus(tmp_path / "text")
    usage = namedtuple("usage", "free")

    def start(free, *overrides):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage(free))
            train_here(*text, *TINY_RUN, "scheduler=constant", f"run_dir={tmp_path}/run", "resume=auto", *overrides)

    return start


def test_no_room_for_a_single_checkpoint_is_one_line_before_the_first_step(train, tmp_path):
    with pytest.raises(ConfigError, match=r"the disk has 0.0 MB left, and a checkpoint takes about 0.1 MB") as refused:
        train(10_000, "train.max_step=2")
    assert len(str(refused.value)) < 300 and not (tmp_path / "run/metrics.jsonl").exists()


def test_room_for_too_few_checkpoints_is_a_warning_that_counts_those_that_are_there(train, caplog):
    train(200_000, "train.max_step=2")
    (line,) = [record.getMessage() for record in caplog.records if "the disk has" in record.getMessage()]
    assert "4 checkpoints of about 0.1 MB" in line and "0 of them now" in line and "checkpoint.keep=1" in line
    caplog.clear()
    train(350_000, "train.max_step=3")
    assert "the disk has" not in caplog.text
    train(50_000, "train.max_step=4", "checkpoint.keep=1")
    assert "the disk has" in caplog.text and "checkpoint.keep=1" not in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records if "the disk has" in record.getMessage())


def test_the_estimated_size_is_that_of_the_files(train, tmp_path, caplog):
    train(300_000, "train.max_step=2")
    written = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step_2").glob("*.pt"))
    assert 90_000 < written < 150_000
