"""A checkpoint is whole or it is none; a torn one is passed over for the one before it."""

import json

import pytest
import torch

from txl.checkpoint import store as ckpt
from txl.system.world import World


def saved(folder, steps=(1, 2, 3), keep=2, best=1):
    checkpoints = ckpt.Checkpoints(folder, World(), keep=keep)
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
    assert ckpt.resolve(tmp_path).name == "step_1"  # the best one speaks for the run


def test_what_is_read_is_what_was_written(tmp_path):
    folder = saved(tmp_path).newest()
    assert ckpt.read(folder, "model.pt")["w"].tolist() == [3]
    assert ckpt.read(folder, "state.json") == {"step": 3}
    assert ckpt.read_columns(folder, range(1, 3)).shape == (2, 2, 3, 5)


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_taken(damage, tmp_path, caplog):
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
        (tmp_path / "step_3" / ckpt.MANIFEST).write_text("{")
    assert checkpoints.newest().name == "step_2"
    assert "step_3" in caplog.text and "trying the checkpoint before it" in caplog.text


def test_a_folder_without_its_rename_is_no_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, steps=(1,))
    (tmp_path / ".step_2.partial").mkdir()
    assert checkpoints.newest().name == "step_1"
    saved(tmp_path, steps=(2,))
    assert not list(tmp_path.glob(".step_*"))


def test_what_was_saved_after_the_point_of_resumption_is_set_aside(tmp_path, caplog):
    folder = saved(tmp_path, steps=(1, 2, 3, 4), keep=9, best=4).folder
    (folder / "step_4" / "model.pt").write_bytes(b"torn")
    checkpoints = ckpt.Checkpoints(folder, World(), keep=9)
    assert not checkpoints.rewind(2, best_step=4)  # the best one is gone: the run is told
    assert [path.name for path in checkpoints.steps()] == ["step_2", "step_1"]
    assert sorted(path.name for path in (folder / "set_aside").iterdir()) == ["step_3", "step_4"]
    assert (folder / "last").resolve().name == "step_2" and not (folder / "best").is_symlink()
    assert "step_4 was saved after step 2" in caplog.text
    assert checkpoints.rewind(2, best_step=1) and (folder / "best").resolve().name == "step_1"
    saved(folder, steps=(3, 4), keep=9, best=4)  # once more, and whole
    assert checkpoints.newest().name == "step_4" and not list((folder / "set_aside").iterdir())


def test_a_checkpoint_of_another_process_is_written_again(tmp_path):
    (tmp_path / "step_3").mkdir()  # what a crash or a full disk left
    assert ckpt.is_whole(saved(tmp_path).folder / "step_3")


def test_a_run_folder_stands_for_its_best_checkpoint_and_goes_on_from_its_last(tmp_path):
    folder = saved(tmp_path / "checkpoints").folder
    for path in (tmp_path, folder):
        assert ckpt.resolve(path).name == "step_1" and ckpt.resolve(path, "resume").name == "step_3"
    assert ckpt.resolve(folder / "step_2").name == ckpt.resolve(folder / "step_2", "resume").name == "step_2"


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ckpt.CheckpointError, match="does not exist"):
        ckpt.resolve(tmp_path / "absent")
    with pytest.raises(ckpt.CheckpointError, match="not a checkpoint, or one that was never finished"):
        ckpt.resolve(tmp_path)
    (tmp_path / ckpt.MANIFEST).write_text(json.dumps({"files": {"model.pt": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(ckpt.CheckpointError, match="model.pt is missing"):
        ckpt.verify(tmp_path)
