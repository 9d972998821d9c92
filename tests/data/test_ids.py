"""Ready-made ids are the corpus that their text is."""

import numpy as np
import pytest

from tests.support.configurations import composed
from tests.support.made_data import write_bpe, write_splits
from tests.support.tiny_runs import TINY_RUN
from txl.data.corpus import open_corpus
from txl.data.ids_source import check_ids, open_id_file
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


def test_with_the_words_of_the_text_the_fingerprint_is_that_of_the_text(text, tmp_path):
    _, corpus, on_ids = text
    words = [f"data.path={on_ids[1].partition('=')[2]}", "data.vocab=word"]
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in corpus.vocab.words))
    ids = open_corpus(composed(*on_ids, *words, f"data.vocab_file={tmp_path}/words.txt", "data.unk='.'").data)
    same_words = vocabulary_from_dict(corpus.vocab.to_dict() | {"unk": "."})
    assert ids.vocab.fingerprint == same_words.fingerprint and ids.fingerprint != corpus.fingerprint
    assert ids.vocab.decode(ids.tokens("valid")) == corpus.vocab.decode(corpus.tokens("valid"))


def test_byte_pairs_belong_to_ids_as_well(tmp_path):
    vocab_file, merges_file = write_bpe(tmp_path, ["the cat sat"] * 9)
    overrides = [f"data.vocab_file={vocab_file}", f"data.merges_file={merges_file}", f"data.cache={tmp_path}/cache"]
    np.arange(260, dtype=np.uint16).tofile(tmp_path / "a.bin")
    data = composed("data=ids", f"data.file={tmp_path}/a.bin", "data.dtype=uint16", "data.vocab=bpe", *overrides).data
    corpus = open_corpus(data)
    assert [len(corpus.tokens(split)) for split in SPLITS] == [234, 13, 13]
    assert corpus.tokens("valid").tolist() == [*range(234, 247)]
    assert corpus.vocab.decode(corpus.vocab.encode_typed("the cat", end_line=False)) == "the cat"


def test_the_position_of_a_bad_id_is_right_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("txl.data.ids_source.BLOCK", 7)
    ids = np.zeros(100, np.uint32)
    ids[64] = 70_000
    np.save(tmp_path / "a.npy", ids)
    data = composed("data=ids", f"data.file={tmp_path}/a.npy", "data.vocab=word", "data.vocab_file=words.txt").data
    with pytest.raises(ConfigError, match=r"data.file=.*a.npy: the id 70000 at position 64 \(from 0\)"):
        check_ids(open_id_file("file", tmp_path / "a.npy", data), 60_000)
