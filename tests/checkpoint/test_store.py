"""Saving, keeping and finding the checkpoints of a run; damaged ones are reported and passed over."""

import json

import pytest
import torch

from txl.checkpoint.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    is_intact,
    read_checkpoint_file,
    read_memory_columns,
    verify_checkpoint,
)
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.store import Checkpoints
from txl.system.world import World


def saved(folder, steps=(1, 2, 3), keep=2, best=1):
    checkpoints = Checkpoints(folder, World(), keep=keep)
    for step in steps:
        shard = {"columns": [0, 4], "mems": torch.full((2, 4, 3, 5), float(step)), "rng": {}}
        documents = {"state.json": {"step": step}}
        checkpoints.save(step, {"model": {"w": torch.tensor([step])}}, shard, documents, best=step == best)
    return checkpoints


def test_the_newest_ones_and_the_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path)
    assert [path.name for path in checkpoints.steps()] == ["step_3", "step_2", "step_1"]
    saved(tmp_path, steps=(4,), best=None)
    assert [path.name for path in checkpoints.steps()] == ["step_4", "step_3", "step_1"]
    assert (tmp_path / "last").resolve().name == "step_4" and (tmp_path / "best").resolve().name == "step_1"
    assert resolve_checkpoint(tmp_path).name == "step_1"  # a run folder means its best checkpoint


def test_what_is_read_is_what_was_written(tmp_path):
    folder = saved(tmp_path).newest()
    assert read_checkpoint_file(folder, "model.pt")["w"].tolist() == [3]
    assert read_checkpoint_file(folder, "state.json") == {"step": 3}
    assert read_memory_columns(folder, range(1, 3)).shape == (2, 2, 3, 5)


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(damage, tmp_path, caplog):
    checkpoints = saved(tmp_path)
    file = tmp_path / "step_3" / "model.pt"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "step_3" / MANIFEST).write_text("{")
    assert checkpoints.newest().name == "step_2"
    assert "step_3" in caplog.text and "trying the checkpoint before it" in caplog.text


def test_a_folder_that_was_not_renamed_is_no_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, steps=(1,))
    (tmp_path / ".step_2.partial").mkdir()
    assert checkpoints.newest().name == "step_1"
    saved(tmp_path, steps=(2,))
    assert not list(tmp_path.glob(".step_*"))


def test_checkpoints_later_than_the_resumed_step_are_set_aside(tmp_path, caplog):
    folder = saved(tmp_path, steps=(1, 2, 3, 4), keep=9, best=4).folder
    (folder / "step_4" / "model.pt").write_bytes(b"damaged")
    checkpoints = Checkpoints(folder, World(), keep=9)
    assert not checkpoints.rewind(2, best_step=4)  # the best checkpoint is gone
    assert [path.name for path in checkpoints.steps()] == ["step_2", "step_1"]
    assert sorted(path.name for path in (folder / "set_aside").iterdir()) == ["step_3", "step_4"]
    assert (folder / "last").resolve().name == "step_2" and not (folder / "best").is_symlink()
    assert "step_4 is later than step 2" in caplog.text
    assert checkpoints.rewind(2, best_step=1) and (folder / "best").resolve().name == "step_1"
    saved(folder, steps=(3, 4), keep=9, best=4)  # saved again, intact
    assert checkpoints.newest().name == "step_4" and not list((folder / "set_aside").iterdir())


def test_a_folder_left_by_another_process_is_written_again(tmp_path):
    (tmp_path / "step_3").mkdir()  # left by a crash or a full disk
    assert is_intact(saved(tmp_path).folder / "step_3")


def test_a_run_folder_means_its_best_checkpoint_and_resume_its_last(tmp_path):
    folder = saved(tmp_path / "checkpoints").folder
    for path in (tmp_path, folder):
        assert resolve_checkpoint(path).name == "step_1" and resolve_checkpoint(path, "resume").name == "step_3"
    for key in ("checkpoint", "resume"):
        assert resolve_checkpoint(folder / "step_2", key).name == "step_2"


def test_best_and_last_beside_the_run_s_name_mean_its_checkpoints(tmp_path):
    saved(tmp_path / "run" / "checkpoints")
    assert resolve_checkpoint(tmp_path / "run" / "best").name == "step_1"
    assert resolve_checkpoint(tmp_path / "run" / "last").name == "step_3"
    assert resolve_checkpoint(tmp_path / "run" / "step_2").name == "step_2"


def test_a_folder_with_one_run_means_that_run_and_with_several_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        saved(tmp_path / "runs" / "a" / f"hash-s{seed}" / "checkpoints")
        (tmp_path / f"runs/a/hash-s{seed}/config.yaml").write_text(f"name: a\nseed: {seed}\n")
        if seed == 1:
            assert resolve_checkpoint("runs").name == "step_1" and resolve_checkpoint("runs", "resume").name == "step_3"
    with pytest.raises(
        CheckpointError, match=r"holds 2 runs: hash-s1 \(seed=1\), hash-s2 \(seed=2\); name one of them"
    ):
        resolve_checkpoint("runs/a")
    assert resolve_checkpoint("latest").parents[1].name == "hash-s2"


def test_a_folder_that_is_no_checkpoint_is_an_error_with_its_path(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not a checkpoint, or one that was never finished"):
        resolve_checkpoint(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"model.pt": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="model.pt is missing"):
        verify_checkpoint(tmp_path)
