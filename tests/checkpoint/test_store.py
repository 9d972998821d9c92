"""Saving, keeping and finding the checkpoints of a run; damaged ones are reported and passed over."""

import errno
import json
import os
import shutil

import pytest
import torch

from tests.support.kills import every_kill
from txl.checkpoint import checkpoint_files, store
from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns
from txl.checkpoint.find import MANIFEST, CheckpointError, is_intact, newest_intact, step_folders, verify_checkpoint
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.store import Checkpoints
from txl.system.world import World


def saved(folder, steps=(1, 2, 3), keep=2, best=1):
    checkpoints = Checkpoints(folder, World(), keep=keep)
    for step in steps:
        shard = {"columns": [0, 4], "mems": torch.full((2, 4, 3, 5), float(step)), "rng": {}}
        documents = {"state.json": {"step": step, "best_step": best or 0}}
        checkpoints.save(step, {"model": {"w": torch.tensor([step])}}, shard, documents, best=step == best)
    return checkpoints


def test_the_newest_ones_and_the_best_are_kept(tmp_path):
    checkpoints = saved(tmp_path)
    assert [path.name for path in step_folders(checkpoints.folder)] == ["step_3", "step_2", "step_1"]
    saved(tmp_path, steps=(4,), best=None)
    assert [path.name for path in step_folders(checkpoints.folder)] == ["step_4", "step_3", "step_1"]
    assert (tmp_path / "last").resolve().name == "step_4" and (tmp_path / "best").resolve().name == "step_1"
    assert resolve_checkpoint(tmp_path).name == "step_1"  # a run folder means its best checkpoint


def test_what_is_read_is_what_was_written(tmp_path):
    folder = newest_intact(saved(tmp_path).folder)
    assert read_checkpoint_file(folder, "model.pt")["w"].tolist() == [3]
    assert read_checkpoint_file(folder, "state.json") == {"step": 3, "best_step": 1}
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
    assert newest_intact(checkpoints.folder).name == "step_2"
    assert "step_3" in caplog.text and "trying the checkpoint before it" in caplog.text


def test_a_folder_that_was_not_renamed_is_no_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, steps=(1,))
    (tmp_path / ".step_2.partial").mkdir()
    assert newest_intact(checkpoints.folder).name == "step_1"
    saved(tmp_path, steps=(2,))
    assert not list(tmp_path.glob(".step_*"))


def test_checkpoints_later_than_the_resumed_step_are_set_aside(tmp_path, caplog):
    folder = saved(tmp_path, steps=(1, 2, 3, 4), keep=9, best=4).folder
    (folder / "step_4" / "model.pt").write_bytes(b"damaged")
    checkpoints = Checkpoints(folder, World(), keep=9)
    assert not checkpoints.rewind(2, best_step=4)  # the best checkpoint is gone
    assert [path.name for path in step_folders(checkpoints.folder)] == ["step_2", "step_1"]
    assert sorted(path.name for path in (folder / "set_aside").iterdir()) == ["step_3", "step_4"]
    assert (folder / "last").resolve().name == "step_2" and not (folder / "best").is_symlink()
    assert "step_4 is later than step 2" in caplog.text
    assert checkpoints.rewind(2, best_step=1) and (folder / "best").resolve().name == "step_1"
    saved(folder, steps=(3, 4), keep=9, best=4)  # saved again, intact
    assert newest_intact(checkpoints.folder).name == "step_4" and not list((folder / "set_aside").iterdir())


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
    with pytest.raises(CheckpointError, match=r"holds 2 runs: a/hash-s1 \(seed=1\), a/hash-s2 \(seed=2\); name one"):
        resolve_checkpoint("runs")
    assert resolve_checkpoint("latest").parents[1].name == "hash-s2"
    monkeypatch.chdir(tmp_path / "runs" / "a")
    with pytest.raises(CheckpointError, match=r"checkpoint=\. holds 2 runs: hash-s1 "):
        resolve_checkpoint(".")
    (tmp_path / "runs/a/hash-s1/config.yaml").write_text(f"name: {'b' * 100}\nseed: 1\n")
    with pytest.raises(CheckpointError, match=r"hash-s1 \(name=b{32}\.\.\.\), hash-s2 \(name=a seed=2\)"):
        resolve_checkpoint(".")


def test_a_run_that_has_saved_nothing_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("name: a\nseed: 1\n")
    with pytest.raises(CheckpointError, match="has no checkpoint: the run ended, or was stopped, before it saved one"):
        resolve_checkpoint(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_an_error_with_its_path(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not a checkpoint, or one that was never finished"):
        resolve_checkpoint(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"model.pt": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="model.pt is missing"):
        verify_checkpoint(tmp_path)


def names(folder):
    return [path.name for path in step_folders(folder)]


def damage(folder, *steps):
    for step in steps:
        (folder / f"step_{step}" / "model.pt").write_bytes(b"damaged")


# --------------------------------------------------------------------------- what keep counts


def test_damaged_checkpoints_of_later_steps_do_not_push_out_new_ones(tmp_path):
    damage(saved(tmp_path, steps=(30, 40), best=None).folder, 30, 40)
    assert newest_intact(tmp_path) is None  # the run begins again
    checkpoints = Checkpoints(tmp_path, World(), keep=2)
    checkpoints.rewind(0, best_step=0)
    saved(tmp_path, steps=(10, 20), best=10)
    assert names(tmp_path) == ["step_20", "step_10"]
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["step_30", "step_40"]


def test_damaged_checkpoints_of_earlier_steps_do_not_push_out_intact_ones(tmp_path, caplog):
    damage(saved(tmp_path, steps=(1, 2, 3, 4), keep=4, best=None).folder, 3)
    checkpoints = Checkpoints(tmp_path, World(), keep=3)
    checkpoints.rewind(4, best_step=0, resumed=tmp_path / "step_4")
    assert names(tmp_path) == ["step_4", "step_2", "step_1"] and "step_3 is damaged" in caplog.text
    saved(tmp_path, steps=(5,), keep=3, best=None)
    assert names(tmp_path) == ["step_5", "step_4", "step_2"]


# --------------------------------------------------------------------------- kills at every file operation


def test_a_step_that_is_saved_again_can_be_found_at_every_instant(tmp_path):
    """keep=1, and the run was resumed at this step: nothing else is left."""

    def prepare():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        saved(tmp_path / "run", steps=(10,), keep=1, best=None)
        return lambda: saved(tmp_path / "run", steps=(10,), keep=1, best=None)

    for operation in every_kill(tmp_path, prepare):
        found = newest_intact(tmp_path / "run")
        assert found is not None and "step_10" in found.name, operation
        assert "step_10" in resolve_checkpoint(tmp_path / "run").name  # for those who look meanwhile
        Checkpoints(tmp_path / "run", World(), keep=1).rewind(10, 0, found)
        assert names(tmp_path / "run") == ["step_10"] and is_intact(tmp_path / "run" / "step_10")
        saved(tmp_path / "run", steps=(10, 20), keep=1, best=None)
        assert names(tmp_path / "run") == ["step_20"]


def test_the_best_checkpoint_can_be_found_while_it_is_saved_again(tmp_path):
    def prepare():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        saved(tmp_path / "run", steps=(10, 20), keep=9, best=20)
        return lambda: saved(tmp_path / "run", steps=(20,), keep=9, best=20)

    for operation in every_kill(tmp_path, prepare):
        assert "step_20" in resolve_checkpoint(tmp_path / "run").name, operation


@pytest.mark.parametrize("keep, best", [(1, None), (1, 10), (2, 20)])
def test_a_kill_while_saving_and_pruning_costs_nothing_that_was_saved(keep, best, tmp_path):
    def prepare():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        saved(tmp_path / "run", steps=(10, 20), keep=keep, best=best)
        return lambda: saved(tmp_path / "run", steps=(30,), keep=keep, best=best)

    for operation in every_kill(tmp_path, prepare):
        found = newest_intact(tmp_path / "run")
        assert found is not None and found.name in ("step_20", "step_30"), operation
        if best is not None:
            assert is_intact(resolve_checkpoint(tmp_path / "run"))
        step = int(found.name.removeprefix("step_"))
        assert Checkpoints(tmp_path / "run", World(), keep=keep).rewind(step, best or step, found)
        saved(tmp_path / "run", steps=(30, 40), keep=keep, best=best)
        assert names(tmp_path / "run")[:keep] == ["step_40", "step_30"][:keep]
        assert not list((tmp_path / "run").glob(".step_*"))


def test_a_kill_while_later_checkpoints_are_set_aside_loses_none(tmp_path):
    def prepare():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        checkpoints = saved(tmp_path / "run", steps=(10, 20, 30), keep=9, best=20)
        return lambda: checkpoints.rewind(10, 20, tmp_path / "run" / "step_10")

    for _ in every_kill(tmp_path, prepare):
        assert newest_intact(tmp_path / "run") is not None
        everywhere = [*(tmp_path / "run").glob("step_*"), *(tmp_path / "run" / "set_aside").glob("step_*")]
        assert sorted(path.name for path in everywhere) == ["step_10", "step_20", "step_30"]


# --------------------------------------------------------------------------- found wherever it is


def test_what_was_set_aside_is_found_if_nothing_else_is_left(tmp_path, caplog):
    checkpoints = saved(tmp_path, steps=(10, 20), keep=9, best=None)
    checkpoints.rewind(10, 0, tmp_path / "step_10")
    assert newest_intact(tmp_path).name == "step_10"  # the run went back on purpose
    damage(tmp_path, 10)
    found = newest_intact(tmp_path)
    assert found == tmp_path / "set_aside" / "step_20" and "no other checkpoint is intact" in caplog.text
    checkpoints.rewind(20, 0, found)
    assert newest_intact(tmp_path) == tmp_path / "step_20" and names(tmp_path)[0] == "step_20"


def test_a_checkpoint_of_another_run_becomes_one_of_this_run(tmp_path):
    """A kill before the first own checkpoint must not begin the run again."""
    other = saved(tmp_path / "other", steps=(10,), best=None).folder
    checkpoints = Checkpoints(tmp_path / "run", World())
    checkpoints.rewind(10, 0, other / "step_10")
    assert newest_intact(tmp_path / "run") == tmp_path / "run" / "step_10" and is_intact(other / "step_10")


@pytest.mark.parametrize(
    "name", ["step_1_keep", "step_1 (copy)", "step_2_1", "step_02", "step_7.tar.gz", "step_", "notes"]
)
def test_only_step_and_digits_is_a_checkpoint(name, tmp_path):
    saved(tmp_path, steps=(1, 2), best=1)
    if "." in name:
        (tmp_path / name).write_text("an archive")
    else:
        shutil.copytree(tmp_path / "step_1", tmp_path / name)
    assert names(tmp_path) == ["step_2", "step_1"] and newest_intact(tmp_path).name == "step_2"
    Checkpoints(tmp_path, World()).rewind(2, 1, tmp_path / "step_2")
    saved(tmp_path, steps=(3, 4), best=4)
    assert names(tmp_path) == ["step_4", "step_3"] and (tmp_path / name).exists()


def test_a_copy_whose_links_were_followed_is_continued(tmp_path):
    saved(tmp_path / "run", steps=(1, 2), best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert (tmp_path / "copy" / "best").is_dir() and not (tmp_path / "copy" / "best").is_symlink()
    assert read_checkpoint_file(resolve_checkpoint(tmp_path / "copy"), "model.pt")["w"].tolist() == [1]
    assert resolve_checkpoint(tmp_path / "copy", "resume").name == "step_2"
    checkpoints = Checkpoints(tmp_path / "copy", World())
    assert checkpoints.rewind(2, 1, tmp_path / "copy" / "step_2")
    assert os.readlink(tmp_path / "copy" / "best") == "step_1"
    assert sorted(path.name for path in (tmp_path / "copy" / "set_aside").iterdir()) == ["best", "last"]


def test_without_symbolic_links_best_and_last_are_text_files(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    saved(tmp_path / "checkpoints", best=2)
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_2\n"
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "best"):
        assert resolve_checkpoint(path).name == "step_2"
    assert resolve_checkpoint(tmp_path / "checkpoints" / "last").name == "step_3"
    for name in ("best", "last"):
        (tmp_path / "checkpoints" / name).unlink()
    assert resolve_checkpoint(tmp_path).name == "step_2"  # the newest one's state.json names the best step


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, steps=(1,), best=1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="step_2 cannot be written: No space left on device"):
        saved(tmp_path, steps=(2,), best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step_1"]


def test_what_torch_cannot_write_is_the_reason_of_the_disk(tmp_path):
    (tmp_path / "model.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint_files.write_checkpoint_file(tmp_path / "model.pt", {"w": torch.zeros(100_000)})


@pytest.fixture
def room_for_one(tmp_path, monkeypatch):
    """The disk of tmp_path/run has no room for a second checkpoint, and that of tmp_path/other has."""
    plain = store.write_checkpoint_file

    def write(path, value):
        others = [one for one in (tmp_path / "run").glob("step_*") if one.is_dir()]
        if tmp_path / "run" in path.parents and others and path.name == "model.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, value)

    monkeypatch.setattr(store, "write_checkpoint_file", write)
    monkeypatch.setattr(store, "other_disk", lambda checkpoints: tmp_path / "other")


def test_with_room_for_one_checkpoint_a_whole_one_is_found_at_every_instant(room_for_one, tmp_path):
    def prepare():
        for name in ("run", "other"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name).mkdir()
        saved(tmp_path / "run", steps=(10,), keep=1, best=10)
        return lambda: saved(tmp_path / "run", steps=(20,), keep=1, best=20)

    for operation in every_kill(tmp_path, prepare):
        found = newest_intact(tmp_path / "run")
        assert found is not None and found.name in ("step_10", "step_20"), operation
        step = int(found.name.removeprefix("step_"))
        Checkpoints(tmp_path / "run", World(), keep=1).rewind(step, step, found)
        assert names(tmp_path / "run") == [f"step_{step}"]
        saved(tmp_path / "run", steps=(30,), keep=1, best=30)
        assert names(tmp_path / "run") == ["step_30"] and is_intact(tmp_path / "run" / "step_30")
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last", "step_30"]


def test_with_room_for_one_checkpoint_the_best_one_is_not_deleted(room_for_one, tmp_path):
    (tmp_path / "other").mkdir()
    saved(tmp_path / "run", steps=(10, 20), keep=1, best=10)
    assert names(tmp_path / "run") == ["step_20", "step_10"] and not list((tmp_path / "other").iterdir())


def test_a_planted_name_of_another_place_deletes_nothing_there(tmp_path):
    victim = saved(tmp_path / "victim", steps=(50,), best=50).folder
    saved(tmp_path / "run", steps=(10,), best=10)
    (tmp_path / "run" / ".elsewhere").write_text(f"{victim}/step_50")
    assert newest_intact(tmp_path / "run").name == "step_10"
    saved(tmp_path / "run", steps=(20,), best=20)
    assert is_intact(victim / "step_50")


# --------------------------------------------------------------------------- bad bytes

BAD_DOCUMENTS = [
    b"",
    b"null",
    b"[]",
    b"3",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"files": null}',
    b'{"files": {"a": 1}}',
]
BAD_DOCUMENTS += [b'{"files": {"../../x": {}}}', b'{"files": {"model.pt": {"bytes": "x"}}}']


@pytest.mark.parametrize("content", BAD_DOCUMENTS)
def test_a_bad_manifest_is_one_line_and_the_checkpoint_before_it_is_used(content, tmp_path, caplog):
    folder = saved(tmp_path).folder
    (folder / "step_3" / MANIFEST).write_bytes(content)
    assert newest_intact(folder).name == "step_2"
    assert all("\n" not in record.getMessage() and len(record.getMessage()) < 300 for record in caplog.records)
    with pytest.raises(CheckpointError, match="step_3"):
        verify_checkpoint(folder / "step_3")


@pytest.mark.parametrize("world_size", [None, [], "1", True, 1.0, 2, 0, 1 << 70])
def test_a_manifest_with_another_number_of_processes_than_its_files_is_damage(world_size, tmp_path):
    folder = saved(tmp_path).folder
    manifest = json.loads((folder / "step_3" / MANIFEST).read_text())
    assert manifest["world_size"] == 1
    (folder / "step_3" / MANIFEST).write_text(json.dumps(manifest | {"world_size": world_size}))
    with pytest.raises(CheckpointError, match="has the files of 1 processes, and its world_size is") as error:
        verify_checkpoint(folder / "step_3")
    assert len(str(error.value)) < 300 and newest_intact(folder).name == "step_2"


@pytest.mark.parametrize("what", ["folder", "pipe", "dangling link"])
def test_a_file_of_another_kind_is_damage(what, tmp_path):
    path = saved(tmp_path).folder / "step_3" / "state.json"
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "dangling link": lambda: path.symlink_to("nowhere")}[what]()
    assert newest_intact(tmp_path).name == "step_2"
