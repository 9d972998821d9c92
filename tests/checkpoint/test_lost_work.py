"""Kills, damage and other processes at the worst moment: what was trained is found again, and numbers are right."""

import json
import shutil

import pytest
import torch

from tests.support.entry_points import run as start
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint import checkpoint_files
from txl.checkpoint.checkpoint_files import read_model_checkpoint
from txl.checkpoint.find import CheckpointError, step_folders, verify_checkpoint
from txl.checkpoint.store import Checkpoints
from txl.data.byte_vocabulary import ByteVocabulary
from txl.system.process_exit import MISSED_TARGET
from txl.system.world import World
from txl.tracking.dllogger_sink import DlloggerSink
from txl.train.final_evaluation import FinalEvaluation


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides of a run that saves every two steps."""
    text = write_corpus(tmp_path_factory.mktemp("text"))
    return [*text, *TINY_RUN, "scheduler=constant", "valid.interval=2", "train.max_step=4"]


def steps_of(run_dir):
    return [path.name for path in step_folders(run_dir / "checkpoints")]


def test_a_run_whose_checkpoints_are_all_damaged_begins_again_and_keeps_its_new_ones(options, tmp_path, capsys):
    run = tmp_path / "run"
    train_here(*options, f"run_dir={run}")
    for folder in step_folders(run / "checkpoints"):
        (folder / "model.pt").write_bytes(b"damaged")
    train_here(*options, f"run_dir={run}", "resume=auto", "train.max_step=2")
    assert steps_of(run) == ["step_2"] and [record["step"] for record in metrics(run)] == [1, 2]
    train_here(*options, f"run_dir={run}", "resume=auto", "train.max_step=6")
    assert "going on from" in capsys.readouterr().out
    assert [record["step"] for record in metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_a_longer_run_that_is_killed_in_its_final_test_is_not_finished(options, tmp_path, monkeypatch, capsys):
    class KilledError(Exception):
        pass

    def killed(*arguments):
        raise KilledError

    run = [*options, f"run_dir={tmp_path}/run", "resume=auto"]
    train_here(*run)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(FinalEvaluation, "evaluate", killed)
        train_here(*run, "train.max_step=6")
    assert not (tmp_path / "run/summary.json").exists()
    train_here(*run, "train.max_step=6")
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6
    assert len(metrics(tmp_path / "run", "test")) == 1
    capsys.readouterr()
    train_here(*run, "train.max_step=6")
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_a_summary_without_what_is_asked_for_now_does_not_end_the_run(options, tmp_path):
    run = [*options, f"run_dir={tmp_path}/run", "resume=auto"]
    train_here(*run)
    train_here(*run, "then=evaluate", "evaluation.tgt_len=4", "evaluation.mem_len=4", "evaluation.batch_size=2")
    assert "evaluation" in json.loads((tmp_path / "run/summary.json").read_text())
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_other_evaluations_at_the_end_are_made_again(options, tmp_path):
    run = [*options, f"run_dir={tmp_path}/run", "resume=auto", "then=evaluate", "evaluation.tgt_len=4"]
    run += ["evaluation.batch_size=2", "sample_tokens=3"]
    train_here(*run, "evaluation.mem_len=4")
    first = json.loads((tmp_path / "run/summary.json").read_text())
    train_here(*run, "evaluation.mem_len=8")
    second = json.loads((tmp_path / "run/summary.json").read_text())
    lengths = [summary["evaluation"]["geometry"]["mem_len"] for summary in (first, second)]
    assert lengths == [4, 8] and first["sample"] == second["sample"] and first["test"]["loss"] == second["test"]["loss"]
    before = (tmp_path / "run/summary.json").stat().st_mtime_ns
    train_here(*run[:-4])  # fewer evaluations than there are
    assert (tmp_path / "run/summary.json").stat().st_mtime_ns == before


def test_a_finished_run_draws_the_curve_that_a_kill_left_out_and_misses_its_target_again(options, tmp_path):
    run = ["train.py", *options, f"run_dir={tmp_path}/run", "resume=auto", "train.target_perplexity=1.5"]
    train_here(*run[1:], expect=MISSED_TARGET)  # without its curve, as if it had been killed before
    said = start(*run, cwd=tmp_path, expect=MISSED_TARGET).stdout
    picture = tmp_path / "run/report/loss.png"
    assert "is finished: nothing to do" in said and "train.target_perplexity=1.5 was missed" in said
    assert picture.read_bytes().startswith(b"\x89PNG") and len(list(picture.parent.iterdir())) == 1


def test_summary_json_comes_after_what_other_sinks_write_at_the_end(options, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KilledError

    class KilledError(BaseException):
        pass

    run = [*options, f"run_dir={tmp_path}/run", "resume=auto", "tracking.dllogger=dll.json"]
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(DlloggerSink, "summary", killed)
        train_here(*run)
    assert not (tmp_path / "run/summary.json").exists()
    train_here(*run)
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("name", ["run.json", "state.json", "vocabulary.json", "model.pt", "optimizer.pt", "rank_0.pt"])
def test_a_file_that_was_emptied_is_named_and_the_checkpoint_before_it_is_used(name, options, tmp_path, capsys):
    run = [*options, f"run_dir={tmp_path}/run", "resume=auto"]
    train_here(*run)
    (tmp_path / "run/checkpoints/step_4" / name).write_bytes(b"")
    (tmp_path / "run/summary.json").unlink()
    train_here(*run)
    said = capsys.readouterr().out
    assert f"step_4 is damaged: {name} differs" in said and "step_2" in said
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    verify_checkpoint(tmp_path / "run/checkpoints/step_4")


# --------------------------------------------------------------------------- a run deletes what is being read

VOCABULARY = ByteVocabulary(b"ab").to_dict()


def save(folder, *steps, best):
    checkpoints = Checkpoints(folder, World(), keep=1)
    for step in steps:
        run = {"model": {}, "data": {}, "train": {}, "evaluation": {}}
        documents = {"run.json": run, "vocabulary.json": VOCABULARY, "state.json": {"best_step": best}}
        checkpoints.save(step, {"model": {"w": torch.tensor([step])}}, {}, documents, best=step == best)


@pytest.fixture
def deleted_while_read(tmp_path, monkeypatch):
    """A run that saves a better checkpoint, and deletes the one before it, when that was verified."""
    save(tmp_path / "checkpoints", 1, best=1)

    def verify(folder):
        manifest = verify_checkpoint(folder)
        if folder.name == "step_1":
            save(tmp_path / "checkpoints", 2, best=2)
        return manifest

    monkeypatch.setattr(checkpoint_files, "verify_checkpoint", verify)
    return tmp_path


def test_a_reader_goes_on_with_the_checkpoint_that_replaces_it(deleted_while_read):
    found = read_model_checkpoint(deleted_while_read)
    assert found.folder.name == "step_2" and found.weights["w"].tolist() == [2]


def test_a_checkpoint_named_by_itself_that_is_deleted_is_one_line(deleted_while_read):
    with pytest.raises(CheckpointError, match="step_1 does not exist; name a run folder"):
        read_model_checkpoint(deleted_while_read / "checkpoints" / "step_1")


def test_damage_is_reported_and_not_retried(tmp_path):
    save(tmp_path / "checkpoints", 1, best=1)
    shutil.copy(tmp_path / "checkpoints/step_1/run.json", tmp_path / "checkpoints/step_1/model.pt")
    with pytest.raises(CheckpointError, match="step_1 is damaged: model.pt differs"):
        read_model_checkpoint(tmp_path)
