"""Ready-made ids are trained on, evaluated and resumed exactly as the text that they were made of."""

import json

import numpy as np
import pytest

from tests.support.bitwise import assert_bitwise_equal
from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_bpe, write_splits
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.data.corpus import open_corpus
from txl.data.ids_source import IdsSource, check_ids, open_id_file
from txl.data.ids_vocabulary import IdsVocabulary
from txl.data.vocabulary import vocabulary_from_dict
from txl.errors import ConfigError

SPLITS = ("train", "valid", "test")
RUN = [
    *TINY_RUN,
    "train.max_step=60",
    "train.roll=true",
    "train.varlen=true",
    "checkpoint.interval=25",
    "checkpoint.save_all=true",
]
RUN += ["evaluation.tgt_len=8", "evaluation.mem_len=8", "evaluation.batch_size=2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(overrides of a text, its corpus, overrides of its ids: each split in another form)"""
    folder = tmp_path_factory.mktemp("ids")
    write_splits(folder / "text", "{}.txt")
    on_text = ["data=text", *(f"data.{split}={folder}/text/{split}.txt" for split in SPLITS)]
    on_text += [f"data.cache={folder}/cache"]
    corpus = open_corpus(composed(*on_text).data)
    np.save(folder / "train.npy", corpus.tokens("train").astype(np.uint16))
    corpus.tokens("valid").astype(np.int32).tofile(folder / "valid.bin")
    np.save(folder / "test.npy", corpus.tokens("test").astype(">i8"))
    on_ids = ["data=ids", f"data.path={folder}", "data.dtype=int32", f"data.cache={folder}/cache"]
    return on_text, corpus, on_ids


def of_numbers(text):
    on_text, corpus, on_ids = text
    return [*on_ids, f"data.vocab_size={len(corpus.vocab)}"]


# --------------------------------------------------------------------------- the same as the text


def final_state(run_dir, step=60):
    folder = run_dir / "checkpoints" / f"step_{step}"
    state = read_checkpoint_file(folder, "state.json")
    del state["train_seconds"], state["data"], state["vocabulary"]
    return {name: read_checkpoint_file(folder, name) for name in ("model.pt", "optimizer.pt")} | {"state": state}


def losses(run_dir):
    return [[record["loss"] for record in metrics(run_dir, kind)] for kind in ("train", "valid", "test")]


def scores(folder, *overrides):
    evaluate_here("hardware=cpu", f"json={folder}/s.json", *overrides)
    return json.loads((folder / "s.json").read_text())


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    on_text, _, _ = text
    train_here(*on_text, *RUN, f"run_dir={folder}/text")
    train_here(*of_numbers(text), *RUN, f"run_dir={folder}/ids")
    return folder


def test_training_on_the_ids_of_a_text_equals_training_on_the_text_bitwise(runs):
    assert losses(runs / "ids") == losses(runs / "text")
    assert_bitwise_equal(final_state(runs / "ids"), final_state(runs / "text"))


def test_evaluating_on_the_ids_equals_evaluating_on_the_text(runs, tmp_path):
    ids, of_text = (scores(tmp_path, f"checkpoint={runs}/{name}", "split=all") for name in ("ids", "text"))
    for split in ("valid", "test"):
        assert ids[split]["loss"] == of_text[split]["loss"] and ids[split]["tokens"] == of_text[split]["tokens"]


def test_a_run_on_ids_resumes_bitwise(text, runs, tmp_path):
    resume = f"resume={runs}/ids/checkpoints/step_25"
    train_here(*of_numbers(text), *RUN, f"run_dir={tmp_path}/resumed", resume)
    assert_bitwise_equal(final_state(tmp_path / "resumed"), final_state(runs / "ids"))


@pytest.mark.slow  # the same claim for other data, or with one process, is in the fast tests
def test_two_processes_on_ids_equal_two_on_the_text(text, tmp_path):
    on_text, _, _ = text
    for name, overrides in (("text", on_text), ("ids", of_numbers(text))):
        run("train.py", *overrides, *RUN, "train.max_step=12", f"run_dir={tmp_path}/{name}", "gpus=2", cwd=tmp_path)
    assert losses(tmp_path / "ids") == losses(tmp_path / "text")
    assert_bitwise_equal(final_state(tmp_path / "ids", 12), final_state(tmp_path / "text", 12))


def test_typed_numbers_are_scored_and_continued(runs, tmp_path, capsys):
    scored = scores(tmp_path, f"checkpoint={runs}/ids", "text='3 4 0 1'", "token_losses=true")["text"]
    assert [token for token, _ in scored["token_losses"]] == ["4", "0", "1"]
    [generated] = scores(tmp_path, f"checkpoint={runs}/ids", "task=generate", "prompt='3 4'", "max_tokens=5")
    ids = generated["prompt_tokens"] + generated["tokens"]
    assert generated["prompt_tokens"] == [3, 4] and generated["text"] == " ".join(map(str, ids))
    assert generated["text"] in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'99' is no token of this model; .* a number from 0 to "):
        scores(tmp_path, f"checkpoint={runs}/ids", "text='3 99'")


# --------------------------------------------------------------------------- the corpus


def test_ids_are_mapped_where_they_are_whatever_their_type(text):
    _, corpus, _ = text
    ids = open_corpus(composed(*of_numbers(text)).data)
    for split in SPLITS:
        assert ids.tokens(split).tolist() == corpus.tokens(split).tolist()
        assert isinstance(ids.tokens(split), np.memmap) and not ids.tokens(split).flags.writeable
    assert [ids.tokens(split).dtype.str for split in SPLITS] == ["<u2", "<i4", ">i8"]
    assert {path.name for path in ids.folder.iterdir()} - {"checked.json"} == {"meta.json", "vocabulary.json"}


def test_with_the_words_of_the_text_the_fingerprint_is_that_of_the_text(text, tmp_path):
    _, corpus, on_ids = text
    words = [f"data.path={on_ids[1].partition('=')[2]}", "data.vocab=word"]
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in corpus.vocab.words))
    ids = open_corpus(composed(*on_ids, *words, f"data.vocab_file={tmp_path}/words.txt", "data.unk='.'").data)
    same_words = vocabulary_from_dict(corpus.vocab.to_dict() | {"unk": "."})
    assert ids.vocab.fingerprint == same_words.fingerprint and ids.fingerprint != corpus.fingerprint
    assert ids.vocab.decode(ids.tokens("valid")) == corpus.vocab.decode(corpus.tokens("valid"))


def test_names_show_the_ids_and_are_typed(text, tmp_path):
    _, corpus, on_ids = text
    names = [f"Note_{i}" for i in range(len(corpus.vocab))]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    vocab = open_corpus(composed(*on_ids, f"data.vocab_file={tmp_path}/names.txt").data).vocab
    assert len(vocab) == len(names) and vocab.decode([2, 0]) == "Note_2 Note_0"
    assert vocab.encode_typed("Note_2\nNote_0", end_line=True).tolist() == [2, 0]
    again = vocabulary_from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert again.fingerprint == vocab.fingerprint and again.tokens == vocab.tokens
    with pytest.raises(ConfigError, match="'2' is no token of this model; .* a name of data.vocab_file"):
        vocab.encode("2")


def test_byte_pairs_belong_to_ids_as_well(tmp_path):
    vocab_file, merges_file = write_bpe(tmp_path, ["the cat sat"] * 9)
    overrides = [f"data.vocab_file={vocab_file}", f"data.merges_file={merges_file}", f"data.cache={tmp_path}/cache"]
    np.arange(260, dtype=np.uint16).tofile(tmp_path / "a.bin")
    data = composed("data=ids", f"data.file={tmp_path}/a.bin", "data.dtype=uint16", "data.vocab=bpe", *overrides).data
    corpus = open_corpus(data)
    assert [len(corpus.tokens(split)) for split in SPLITS] == [234, 13, 13]
    assert corpus.tokens("valid").tolist() == [*range(234, 247)]
    assert corpus.vocab.decode(corpus.vocab.encode_typed("the cat", end_line=False)) == "the cat"


def test_the_metric_is_chosen(text):
    assert open_corpus(composed(*of_numbers(text)).data).metric.name == "ppl"
    assert open_corpus(composed(*of_numbers(text), "data.metric=bpc").data).metric.name == "bpc"


def test_ids_are_checked_once(text, monkeypatch):
    first = open_corpus(composed(*of_numbers(text)).data)

    def refuse(*_):
        raise AssertionError("checked again")

    monkeypatch.setattr(IdsSource, "build", refuse)
    assert open_corpus(composed(*of_numbers(text)).data).fingerprint == first.fingerprint
    with pytest.raises(AssertionError, match="checked again"):
        open_corpus(composed(*of_numbers(text), "data.vocab_size=100").data)


def test_the_fingerprint_follows_the_content_and_not_the_form(tmp_path):
    def fingerprint(name, array):
        np.save(tmp_path / f"{name}.npy", array)
        overrides = [
            "data=ids",
            f"data.file={tmp_path}/{name}.npy",
            "data.vocab_size=9",
            f"data.cache={tmp_path}/cache",
        ]
        return open_corpus(composed(*overrides).data).fingerprint

    ids = np.arange(100) % 9
    assert fingerprint("a", ids.astype(np.uint8)) == fingerprint("b", ids.astype(">i4")) != fingerprint("c", ids[::-1])


# --------------------------------------------------------------------------- bad input


def save(array):
    return lambda path: np.save(path, array)


def write(content):
    return lambda path: path.write_bytes(content)


def truncated_npy(path):
    np.save(path, np.arange(100, dtype=np.int32))
    path.write_bytes(path.read_bytes()[:-10])


BAD = {
    "floats": ("a.npy", save(np.ones(9, np.float32)), [], "holds float32, no token ids; write integers"),
    "booleans": ("a.npy", save(np.ones(9, bool)), [], "holds bool, no token ids"),
    "objects": ("a.npy", save(np.array([1, "a"], object)), [], "cannot be opened"),
    "wrong_rank": ("a.npy", save(np.ones((3, 3), np.int32)), [], r"has the shape \(3, 3\); the ids must be one row"),
    "no_ids": ("a.npy", save(np.ones(0, np.int32)), [], "has no ids; give another file"),
    "empty": ("a.npy", write(b""), [], "is empty; give another file"),
    "truncated_npy": ("a.npy", truncated_npy, [], "cannot be opened .*: it is truncated or damaged"),
    "no_npy": ("a.npy", write(b"hello"), [], "is no .npy file; write it with numpy.save"),
    "too_large": (
        "a.npy",
        save(np.array([0, 8] * 20 + [9, 10])),
        [],
        r"the id 9 at position 40 \(from 0\) is outside the voca",
    ),
    "negative": (
        "a.npy",
        save(np.array([0, -1] * 20)),
        [],
        r"the id -1 at position 1 \(from 0\) is outside the vocabulary",
    ),
    "no_dtype": ("a.bin", write(b"abcd"), [], "data.dtype=null is needed for .*a.bin, which has no header"),
    "truncated": ("a.bin", write(b"abc"), ["data.dtype=uint16"], "has 3 bytes, no multiple of the 2 bytes of data.dty"),
    "a_text": ("a.txt", write(b"abc"), [], "data.dtype=null is needed for .*a.txt, which has no header"),
    "missing": ("b.npy", save(np.arange(9)), [], "a.npy: No such file or directory"),
    "no_size": (
        "a.npy",
        save(np.arange(99)),
        ["data.vocab_size=null"],
        "data.vocab_size=null is needed by data.vocab=",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_of_ids_is_said_in_one_line(case, tmp_path):
    name, make, overrides, message = BAD[case]
    make(tmp_path / name)
    named = f"data.file={tmp_path}/a{'.npy' if case == 'missing' else (tmp_path / name).suffix}"
    overrides = ["data=ids", named, "data.vocab_size=9", f"data.cache={tmp_path}/cache", *overrides]
    with pytest.raises(ConfigError, match=message) as error:
        open_corpus(composed(*overrides).data)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.split_bytes=[8,1,1]"], "data.split_bytes=.* has no meaning for data.source=ids"),
        (["data.vocab=char"], "data.vocab=char needs data.source=text, not data.source=ids"),
        (["data.source=text", "data.vocab=ids"], "data.vocab=ids needs data.source=ids, not data.source=text"),
        (["data.vocab=word"], "data.vocab=word with data.source=ids needs the file of its words: give data.vocab_file"),
        (["data.train=*.npy", "data.valid=a.npy"], "data.train=.*.npy is a pattern; the ids of a split must be in one"),
        (["data.split=[0.01,0.99]", "data.file=a.npy"], "leaves no ids for train: .* has 9"),
    ],
)
def test_options_that_do_not_go_with_ids_are_refused(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.arange(9))
    files = [] if any("data.train" in one or "data.file" in one for one in overrides) else ["data.file=a.npy"]
    with pytest.raises(ConfigError, match=message):
        open_corpus(composed("data=ids", "data.vocab_size=9", "data.cache=cache", *files, *overrides).data)


def test_the_position_of_a_bad_id_is_right_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("txl.data.ids_source.BLOCK", 7)
    ids = np.zeros(100, np.uint32)
    ids[64] = 70_000
    np.save(tmp_path / "a.npy", ids)
    data = composed("data=ids", f"data.file={tmp_path}/a.npy", "data.vocab_size=60000").data
    with pytest.raises(ConfigError, match=r"data.file=.*a.npy: the id 70000 at position 64 \(from 0\)"):
        check_ids(open_id_file("file", tmp_path / "a.npy", data), IdsVocabulary(60_000))
