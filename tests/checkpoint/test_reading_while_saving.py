"""An evaluation reads a run that saves and deletes checkpoints all the time."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from txl.checkpoint.checkpoint_files import read_model_checkpoint
from txl.checkpoint.find import read_pointer
from txl.checkpoint.store import Checkpoints
from txl.data.byte_vocabulary import ByteVocabulary
from txl.system.world import World

SAVES = 20  # while it is read


@pytest.fixture
def saving(tmp_path, monkeypatch):
    """A run that saves as fast as it can, keeps one checkpoint, and finds every third one better than all before."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # a slow disk would give the reader time
    checkpoints, stop = Checkpoints(tmp_path / "checkpoints", World(), keep=1), threading.Event()
    vocabulary = ByteVocabulary(b"ab").to_dict()
    steps: list[int] = []

    def save() -> None:
        while not stop.is_set():
            step = len(steps) + 1
            run = {"model": {}, "data": {}, "train": {}, "evaluation": {}}
            state = {"best_step": step - step % 3, "data": str(step)}
            documents = {"run.json": run, "vocabulary.json": vocabulary, "state.json": state}
            weights = {"w": torch.full((50_000,), float(step))}
            checkpoints.save(step, {"model": weights}, {}, documents, best=step % 3 == 0)
            steps.append(step)

    thread = threading.Thread(target=save)
    thread.start()
    while len(steps) < 3 and thread.is_alive():
        time.sleep(0.01)
    yield tmp_path, steps
    stop.set()
    thread.join()


@pytest.mark.parametrize("name", ["", "best", "last", "checkpoints"])
def test_no_reading_fails_and_none_mixes_two_checkpoints(saving, name):
    run, steps = saving
    last = len(steps) + SAVES
    while len(steps) < last:
        found = read_model_checkpoint(Path(run) / name)
        assert found.weights["w"].unique().tolist() == [float(found.folder.name.removeprefix("step_"))]
        assert found.data_fingerprint == found.folder.name.removeprefix("step_")


def test_a_link_that_moves_while_it_is_followed_is_followed_again(tmp_path, monkeypatch):
    (tmp_path / "step_2").mkdir()
    (tmp_path / "step_2" / "manifest.json").write_text("{}")
    (tmp_path / "last").symlink_to("step_2")
    earlier, readlink = iter(["step_1"]), os.readlink  # step_1 was removed after the link was read
    monkeypatch.setattr("os.readlink", lambda path: next(earlier, None) or readlink(path))
    assert read_pointer(tmp_path / "last") == tmp_path / "step_2"
