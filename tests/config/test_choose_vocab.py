"""`data=text data.file=...` alone works for any text, and says what it took for a token."""

import bz2
import gzip
import json
import lzma
import random

import pytest

from tests.support.configurations import composed
from tests.support.in_process import train_here
from tests.support.tiny_runs import TINY_RUN
from txl.config.choose_vocab import SAMPLE, choose_vocab
from txl.config.data import SPLITS, Metric, VocabKind
from txl.data.corpus import log_once, open_corpus
from txl.errors import ConfigError

RANDOM = random.Random(0)
WORDS = [f"Note_{i}" for i in range(90)]
NAMES = " ".join(f"name{i}" for i in range(3000))


def text_of(signs: str, end: str) -> bytes:
    lines = ("".join(RANDOM.choices(signs, k=30)) + end for _ in range(200))
    return "".join(lines).encode()


TEXTS = {
    "Chinese": (text_of("".join(map(chr, range(0x4E00, 0x4F00))), "。\n"), VocabKind.char),
    "Thai in one line": (text_of("กขฃคฅฆงจฉชซฌญฎ", ""), VocabKind.char),
    "few words": (b"a short text of a few words\n", VocabKind.char),
    "many names": (NAMES.encode(), VocabKind.char),
    "events": (" ".join(RANDOM.choices(WORDS, k=5000)).encode(), VocabKind.word),
    "Arabic, repeated": ("مرحبا بالعالم هذا نص\n".encode() * 200, VocabKind.word),
    "words, and rare ones": ((" ".join(RANDOM.choices(WORDS, k=9000)) + " rare rarer rarest").encode(), VocabKind.word),
    "Latin-1": (("été à la mer, naïve\n" * 200).encode("latin-1"), VocabKind.byte),
    "UTF-16": (("plain text\n" * 300).encode("utf-16"), VocabKind.byte),
    "noise": (RANDOM.randbytes(5000), VocabKind.byte),
    "CR": (b"one line\rtwo lines\r" * 100, VocabKind.word),
    "a blank text": (b" \n" * 500, VocabKind.char),
}


@pytest.mark.parametrize("name", TEXTS)
def test_one_file_of_any_language_is_a_data_set(tmp_path, name):
    text, kind = TEXTS[name]
    (tmp_path / "my.txt").write_bytes(text)
    data = composed("data=text", f"data.file={tmp_path}/my.txt", f"data.cache={tmp_path}/cache").data
    assert data.vocab is kind and data.metric is (Metric.ppl if kind is VocabKind.word else Metric.bpc)
    corpus = open_corpus(data)
    assert corpus.splits == SPLITS and all(len(corpus.tokens(split)) for split in SPLITS)
    assert f"data.vocab={kind.name} was chosen for {tmp_path}/my.txt: " in corpus.notes[1][1]


@pytest.mark.parametrize(
    "pack, program", [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")]
)
def test_a_compressed_text_is_refused_unless_bytes_are_asked_for(tmp_path, program, pack):
    (tmp_path / "my.txt").write_bytes(pack(NAMES.encode() + TEXTS["events"][0]))
    options = ["data=text", f"data.file={tmp_path}/my.txt", f"data.cache={tmp_path}/cache"]
    with pytest.raises(ConfigError, match=f"my.txt.* is compressed; unpack it first: {program} {tmp_path}/my.txt"):
        open_corpus(composed(*options).data)
    assert open_corpus(composed(*options, "data.vocab=byte").data).splits == SPLITS


def test_words_that_occur_once_and_later_ones_are_unknown(tmp_path):
    (tmp_path / "my.txt").write_bytes(TEXTS["words, and rare ones"][0])
    data = composed("data=text", f"data.file={tmp_path}/my.txt", f"data.cache={tmp_path}/cache").data
    corpus = open_corpus(data)
    assert (data.min_freq, data.max_size) == (2, 100_000) and corpus.vocab.unk_id is not None
    assert corpus.vocab.encode("rarest")[0] == corpus.vocab.unk_id


@pytest.mark.parametrize(
    "overrides, kind, min_freq",
    [
        (["data.vocab=word"], VocabKind.word, 0),
        (["data.vocab=byte"], VocabKind.byte, 0),
        (["data.min_freq=3"], VocabKind.word, 3),
        (["data.max_size=9"], VocabKind.word, 0),
        (["data.lower_case=true"], VocabKind.word, 0),
        (["experiment=tinyshakespeare", "data.path={}"], VocabKind.char, 0),
    ],
)
def test_who_chooses_is_obeyed(tmp_path, overrides, kind, min_freq):
    (tmp_path / "my.txt").write_bytes(TEXTS["Chinese"][0])
    choice = [] if overrides[0].startswith("experiment") else ["data=text"]
    data = composed(*choice, *(each.format(tmp_path) for each in overrides), f"data.file={tmp_path}/my.txt").data
    assert (data.vocab, data.min_freq) == (kind, min_freq)


def test_three_files_and_a_missing_file_are_words(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXTS["Chinese"][0])
    for files in ([f"data.train={tmp_path}/a.txt", f"data.valid={tmp_path}/a.txt"], ["data.file=none.txt"]):
        data = composed("data=text", *files).data
        assert (data.vocab, data.min_freq, data.max_size) == (VocabKind.word, 0, None)


@pytest.mark.parametrize("cut", range(4))
def test_a_character_that_the_sample_cuts_is_no_damage(tmp_path, cut):
    (tmp_path / "a").write_bytes(b"x" * cut + "𠀀".encode() * (SAMPLE // 4 + 1))
    assert choose_vocab(tmp_path / "a", SAMPLE + 4, cut).vocab == "char"


def test_the_run_says_at_every_start_what_was_chosen_and_what_is_unknown(tmp_path, capsys):
    (tmp_path / "my.txt").write_bytes(TEXTS["words, and rare ones"][0])
    options = ["data=text", f"data.file={tmp_path}/my.txt", f"data.cache={tmp_path}/cache", "data.vocab_size=77"]
    options += [*TINY_RUN, "train.max_step=8", f"run_dir={tmp_path}/run", "resume=auto"]
    lines = [
        "data.vocab=word was chosen for",
        "data.vocab_size=77 was expected, the text has 92",
        "unknown: train 0.0 %",
    ]
    log_once.cache_clear()  # as in another process
    train_here(*options)
    said, written = capsys.readouterr().out, (tmp_path / "run" / "train.log").read_text()
    assert [said.count(line) for line in lines] == [1, 1, 1]
    assert [written.count(line) for line in lines] == [1, 1, 1]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["vocab_size"] == 92 and plan["unknown"].keys() == set(SPLITS) and plan["unknown"]["test"] > 0
    train_here(*options, "dry_run=true")
    rows = capsys.readouterr().out.splitlines()
    assert "vocabulary   data.vocab=word (chosen for this text), 92 tokens" in rows
    assert any(row.startswith("unknown      train 0.0 %, valid ") for row in rows)
    assert all(len(line) <= 80 for line in [*rows, *said.splitlines()] if line.startswith(("unknown", "vocabulary")))
