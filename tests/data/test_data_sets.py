"""Every data set in the layout that it really has: encoded, trained on, evaluated, all without a special case."""

import json
import math
import shutil

import pytest

from tests.support.bitwise import assert_bitwise_equal
from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_bpe, write_lm1b, write_one_file, write_splits
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file, read_memory_columns
from txl.data.corpus import open_corpus


def words(name, layout):
    def write(folder):
        write_splits(folder, layout)
        return [f"data={name}", f"data.path={folder}", "data.vocab_size=null", "data.cutoffs=[4,10]"]

    return write


def one_file(name):
    def write(folder):
        cut = write_one_file(folder, name)
        return [f"data={name}", f"data.path={folder}", cut]

    return write


def own_text(kind):
    def write(folder):
        write_splits(folder, "{}.txt")
        return ["data=text", f"data.vocab={kind}", *(f"data.{s}={folder}/{s}.txt" for s in ("train", "valid", "test"))]

    return write


def byte_pairs(*choice):
    def write(folder):
        write_splits(folder, "{}.txt")
        vocab_file, merges_file = write_bpe(folder, [" the cat sat on the mat . \n"] * 9)
        files = [f"data.vocab_file={vocab_file}", f"data.merges_file={merges_file}"]
        return [*choice, f"data.path={folder}", "data.vocab=bpe", *files]

    return write


CORPORA = {
    "wt103": words("wt103", "{}.txt"),
    "wt103_as_downloaded": words("wt103", "wiki.{}.tokens"),
    "wt103_bpe": byte_pairs("data=wt103"),
    "wt2": words("wt2", "wiki.{}.tokens"),
    "ptb": words("ptb", "ptb.{}.txt"),
    "enwik8": one_file("enwik8"),
    "text8": one_file("text8"),
    "lm1b": write_lm1b,
    "text_word": own_text("word"),
    "text_byte": own_text("byte"),
    "text_char": own_text("char"),
    "text_bpe": byte_pairs("data=text"),
}
METRIC = {"enwik8": "bpc", "text8": "bpc", "text_byte": "bpc", "text_char": "bpc"}  # else perplexity


def score(folder, *overrides):
    """What evaluate.py writes as JSON."""
    evaluate_here("hardware=cpu", f"json={folder}/s.json", *overrides)
    return json.loads((folder / "s.json").read_text())


@pytest.mark.parametrize("name", CORPORA)
def test_a_data_set_is_encoded_trained_on_and_evaluated(name, tmp_path):
    overrides = [*CORPORA[name](tmp_path / "data"), f"data.cache={tmp_path}/cache", *TINY_RUN]
    overrides += ["train.max_step=20", "evaluation.tgt_len=8", "evaluation.mem_len=8", "evaluation.batch_size=2"]
    train_here(*overrides, f"run_dir={tmp_path}/run", "optimizer.lr=0.01")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 20
    result = score(tmp_path, f"checkpoint={tmp_path}/run", "split=all")
    size = len(open_corpus(composed(*overrides).data).vocab)
    assert result["metric"] == METRIC.get(name, "ppl")
    assert 0 < result["test"]["loss"] < math.log(size)  # better than knowing nothing
    assert result["valid"]["loss"] != result["test"]["loss"]


@pytest.fixture(scope="module")
def on_pairs(tmp_path_factory):
    """A run folder; the files of its vocabulary and all that was encoded with them are gone."""
    folder = tmp_path_factory.mktemp("pairs")
    overrides = [*byte_pairs("data=text")(folder / "data"), f"data.cache={folder}/cache", *TINY_RUN]
    train_here(*overrides, f"run_dir={folder}/run", "train.max_step=6", "sample_tokens=5")
    shutil.rmtree(folder / "cache")
    for name in ("vocab.json", "merges.txt"):
        (folder / "data" / name).unlink()
    return folder / "run"


def test_a_checkpoint_encodes_the_text_where_the_files_of_its_vocabulary_are_gone(on_pairs, tmp_path):
    summary = json.loads((on_pairs / "summary.json").read_text())
    again = score(tmp_path, f"checkpoint={on_pairs}", "tgt_len=8", "mem_len=8", "batch_size=4")
    assert again["test"]["tokens"] == summary["test"]["tokens"]
    assert again["test"]["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-5)


def test_byte_pairs_of_typed_text_are_read_and_written(on_pairs, tmp_path, capsys):
    typed = "A naïve zebra."
    found = score(tmp_path, f"checkpoint={on_pairs}", f"text='{typed}'", "token_losses=true")["text"]
    assert found["unknown"] == 0 and "".join(["A", *(token for token, _ in found["token_losses"])]).startswith("A na")
    [text] = score(tmp_path, f"checkpoint={on_pairs}", "task=generate", f"prompt='{typed}'", "max_tokens=20")
    assert text["text"].startswith(typed) and len(text["tokens"]) == 20
    assert typed in capsys.readouterr().out


def test_typed_sentences_begin_with_s_and_have_no_joiners(tmp_path):
    shared = [*write_lm1b(tmp_path / "data"), f"data.cache={tmp_path}/cache", *TINY_RUN]
    train_here(*shared, f"run_dir={tmp_path}/run", "train.max_step=6")
    here = f"checkpoint={tmp_path}/run"
    found = score(tmp_path, here, "text='The cat ran, under-fed'", "token_losses=true")["text"]
    words = [word for word, _ in found["token_losses"]]
    assert words == ["<UNK>", "cat", "ran", ",", "<UNK>", "\n"] and found["unknown"] == 2  # from <S> on
    [text] = score(tmp_path, here, "task=generate", "prompt='the cat'", "max_tokens=4")
    assert text["prompt_tokens"][0] == 2 and text["text"].startswith("the cat") and len(text["tokens"]) == 4


def final_state(run_dir, step):
    folder = run_dir / "checkpoints" / f"step_{step}"
    optimizer, mems = read_checkpoint_file(folder, "optimizer.pt")["state"], read_memory_columns(folder, range(8))
    state = {key: value for key, value in read_checkpoint_file(folder, "state.json").items() if key != "train_seconds"}
    return {"model": read_checkpoint_file(folder, "model.pt"), "optimizer": optimizer, "mems": mems, "state": state}


def test_a_run_on_sentences_goes_on_bitwise_in_the_middle_of_a_file(tmp_path):
    shared = [*write_lm1b(tmp_path / "data"), f"data.cache={tmp_path}/cache", *TINY_RUN, "train.max_step=60"]
    shared += ["checkpoint.interval=13", "checkpoint.save_all=true"]
    train_here(*shared, f"run_dir={tmp_path}/straight")
    for step in (13, 52):  # in the second file of the first epoch, and of the second one
        resumed = tmp_path / f"from_{step}"
        train_here(*shared, f"run_dir={resumed}", f"resume={tmp_path}/straight/checkpoints/step_{step}")
        assert_bitwise_equal(final_state(resumed, 60), final_state(tmp_path / "straight", 60))
    assert final_state(resumed, 60)["state"]["stream"]["epoch"] == 2


@pytest.mark.slow  # the same claim for other data, or with one process, is in the fast tests
def test_two_processes_on_sentences_equal_one(tmp_path):
    shared = [*write_lm1b(tmp_path / "data"), f"data.cache={tmp_path}/cache", *TINY_RUN, "train.max_step=20"]
    shared += ["precision=fp64", "model.dropout=0", "valid.batch_size=3"]
    train_here(*shared, f"run_dir={tmp_path}/one")
    run("train.py", *shared, f"run_dir={tmp_path}/two", "gpus=2", cwd=tmp_path)
    for kind in ("train", "valid", "test"):
        one, two = ([line["loss"] for line in metrics(tmp_path / name, kind)] for name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-9) and len(one) == (20 if kind == "train" else 1)


def test_what_is_wrong_with_a_vocabulary_is_one_line_and_leaves_no_run(tmp_path):
    overrides = write_lm1b(tmp_path / "data")
    with open(tmp_path / "data" / "1b_word_vocab.txt", "a") as file:
        file.write("\ncat 3\n")
    done = run("train.py", *overrides, *TINY_RUN, f"data.cache={tmp_path}/cache", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: data.vocab_file=") and done.stderr.count("\n") == 1
    assert "1b_word_vocab.txt: line 21 is blank; remove it" in done.stderr
    assert not (tmp_path / "runs").exists() and [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
