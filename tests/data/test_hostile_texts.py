"""Texts and vocabularies that would take endless time or memory, and files that are none: one line, at once."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.configurations import composed
from tests.support.damage import DAMAGES
from tests.support.made_data import sentences, write_bpe, write_splits
from txl.data import numbered_words, verified_blocks
from txl.data.corpus import Corpus, open_corpus, vocab_size_from_files
from txl.errors import ConfigError

VOCABULARIES = {
    "word": ["words.txt"],
    "bpe": ["vocab.json", "merges.txt"],
    "tokenizer": ["tokenizer.json"],
    "ids": ["names.txt"],
}
OPTIONS = {"word": ["vocab_file"], "bpe": ["vocab_file", "merges_file"], "tokenizer": ["tokenizer_file"]}
DAMAGED = [(kind, file) for kind, files in VOCABULARIES.items() for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text, its ids, and the files of every kind of vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("hostile")
    write_splits(folder / "text", "{}.txt")
    text = [(folder / "text" / "train.txt").read_text()]
    write_bpe(folder, text)
    words = ["<eos>", "<unk>", *sorted(set(text[0].split()))]
    (folder / "words.txt").write_text("".join(f"{word} {i}\n" for i, word in enumerate(words)))
    (folder / "names.txt").write_text("".join(f"{word}\n" for word in words))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    for split in ("train", "valid"):
        np.save(folder / f"{split}.npy", np.arange(1000) % 10)
    return folder


def data_of(kind: str, folder: Path, place: Path):
    """The options of a data set whose vocabulary files are in `place`."""
    files = [
        f"data.{key}={place}/{file}"
        for key, file in zip(OPTIONS.get(kind, ["vocab_file"]), VOCABULARIES[kind], strict=True)
    ]
    if kind == "ids":
        return composed("data=ids", f"data.path={folder}", *files, f"data.cache={place}/cache").data
    return composed(
        "data=text", f"data.path={folder}/text", f"data.vocab={kind}", *files, f"data.cache={place}/cache"
    ).data


def open_or_refuse(data, file: Path) -> str | Corpus:
    """The corpus, or the one line that says why not."""
    try:
        return open_corpus(data)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) <= 250 + 2 * len(str(file)), str(error)
        return str(error)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind, file", DAMAGED)
def test_a_damaged_vocabulary_file_is_named_in_one_line(folder, tmp_path, kind, file, damage):
    for name in VOCABULARIES[kind]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    data = data_of(kind, folder, tmp_path)
    assert isinstance(open_or_refuse(data, tmp_path / file), Corpus)
    DAMAGES[damage](tmp_path / file)
    result = open_or_refuse(data, tmp_path / file)
    if isinstance(result, Corpus):  # other words are a vocabulary, too
        assert damage in ("flipped", "longer", "truncated", "null", "other_json", "nested", "zeroed"), damage
    else:
        assert file in result or (kind == "ids" and "data.vocab_file" in result)
        vocab_size_from_files_or_refuse(data)


def vocab_size_from_files_or_refuse(data) -> None:
    """The plan asks for it before anything is encoded."""
    try:
        vocab_size_from_files(data)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind, file", DAMAGED)
def test_a_vocabulary_of_gigabytes_is_refused_unread(folder, tmp_path, kind, file):
    for name in VOCABULARIES[kind]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    os.truncate(tmp_path / file, 4 << 30)  # takes no room on the disk
    began = time.process_time()
    result = open_or_refuse(data_of(kind, folder, tmp_path), tmp_path / file)
    assert isinstance(result, str) and f"{file} has 4,294,967,296 bytes; a vocabulary has at most" in result
    assert time.process_time() - began < 1


def test_a_vocabulary_of_endless_short_lines_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(numbered_words, "MOST_DIFFERENT", 1000)
    (tmp_path / "words.txt").write_text("\n".join(map(str, range(1001))))
    result = open_or_refuse(data_of("word", folder, tmp_path), tmp_path)
    assert isinstance(result, str) and "words.txt has more than 1,000 different words" in result


def test_a_text_of_endless_different_words_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(numbered_words, "MOST_DIFFERENT", 1000)
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(1001))))
    data = composed(
        "data=text", f"data.train={tmp_path}/a.txt", f"data.valid={tmp_path}/a.txt", f"data.cache={tmp_path}/c"
    ).data
    with pytest.raises(ConfigError, match=r"a.txt has more than 1,000 different words; use data.vocab=bpe"):
        open_corpus(data)


def test_a_word_of_gigabytes_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a few words\nand a line")
    os.truncate(tmp_path / "a.txt", 4 << 30)
    data = composed(
        "data=text", f"data.train={tmp_path}/a.txt", f"data.valid={tmp_path}/a.txt", f"data.cache={tmp_path}/c"
    ).data
    with pytest.raises(ConfigError, match="a.txt: line 2 has a word of more than 16,777,216 bytes"):
        open_corpus(data)


def test_a_text_that_a_tokenizer_cannot_cut_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(verified_blocks, "LONGEST", 4 * verified_blocks.LOOKAHEAD)
    monkeypatch.setattr(verified_blocks, "_ends_with", lambda ids, tail: False)
    (tmp_path / "train.txt").write_text("one " * 300_000)
    data = data_of("bpe", folder, folder)
    data.train, data.cache = str(tmp_path / "train.txt"), str(tmp_path / "cache")
    with pytest.raises(ConfigError, match="train.txt: the tokenizer finds no place in 16,384 characters"):
        open_corpus(data)


# --------------------------------------------------------------------------- time

LINE = "".join(chr(0x4E00 + 37 * i % 500) for i in range(20))
SHAPES = {
    "lines that end with a wide space": LINE + "\u3000\n",
    "lines that end with a no-break space": LINE + "\u00a0\n",
    "lines that end with spaces": LINE + "   \n",
    "lines that end with CR LF": LINE + "\r\n",
    "lines that end with CR": LINE + "\r",
    "one line of words": LINE + " ",
    "one line without spaces": LINE,
    "one letter": "a" * 20,
    "spaces": " " * 60,
    "empty lines": "\n" * 60,
    "tabs": LINE + "\t",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_the_time_to_encode_grows_with_the_size_and_not_with_its_square(folder, tmp_path, kind, shape):
    def seconds(lines: int) -> float:
        (tmp_path / "train.txt").write_text("a\n" + lines * SHAPES[shape])
        (tmp_path / "valid.txt").write_text("a\n")
        options = (
            [f"data.vocab_file={folder}/vocab.json", f"data.merges_file={folder}/merges.txt"] if kind == "bpe" else []
        )
        data = composed(
            "data=text", f"data.vocab={kind}", f"data.path={tmp_path}", *options, f"data.cache={tmp_path}/c"
        ).data
        began = time.process_time()
        open_corpus(data)
        return time.process_time() - began

    seconds(100)  # imports
    small, large = seconds(1000), seconds(8000)
    assert large < 20 * max(small, 0.02)  # 64 times, if it grew with the square


# --------------------------------------------------------------------------- lines too long for a split


@pytest.mark.parametrize("end", [" ", "\r", "\t", "\n"])
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_text_in_one_line_is_cut_between_words(folder, tmp_path, kind, end):
    words = " ".join(sentences(300, random.Random(0))).split()
    (tmp_path / "one").write_text(end.join(words))
    options = [f"data.vocab_file={folder}/vocab.json", f"data.merges_file={folder}/merges.txt"] if kind == "bpe" else []
    size = (tmp_path / "one").stat().st_size
    for cut in ("data.split=[.9,.05,.05]", f"data.split_bytes=[{size - 200},100,100]"):
        data = composed(
            "data=text", f"data.vocab={kind}", f"data.file={tmp_path}/one", cut, *options, f"data.cache={tmp_path}/c"
        ).data
        corpus = open_corpus(data)
        texts = [corpus.vocab.decode(corpus.tokens(split)).replace("<|endoftext|>", "") for split in corpus.splits]
        assert " ".join(texts).split() == words
        assert len(texts[0].split()) / len(words) > 0.85


def test_byte_pairs_of_a_text_without_spaces_are_cut_between_characters(folder, tmp_path):
    (tmp_path / "one").write_text(LINE * 50)
    options = [f"data.vocab_file={folder}/vocab.json", f"data.merges_file={folder}/merges.txt"]
    data = composed(
        "data=text",
        "data.vocab=bpe",
        f"data.file={tmp_path}/one",
        "data.split=[.9,.1]",
        *options,
        f"data.cache={tmp_path}/c",
    ).data
    corpus = open_corpus(data)
    texts = [corpus.vocab.decode(corpus.tokens(split)).replace("<|endoftext|>", "") for split in corpus.splits]
    assert "".join(texts) == LINE * 50


def test_a_single_word_cannot_be_cut(tmp_path):
    (tmp_path / "one").write_text(LINE * 50)
    options = [f"data.file={tmp_path}/one", "data.vocab=word", "data.split=[.9,.1]", f"data.cache={tmp_path}/c"]
    with pytest.raises(ConfigError, match="leaves no text for valid"):
        open_corpus(composed("data=text", *options).data)
