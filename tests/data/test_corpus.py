"""Data sets on disk become token files, once."""

import fcntl
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from txl.config.data import DataConfig, Metric, VocabKind
from txl.data import corpus as corpus_module
from txl.data import splits, standard_library, text_source
from txl.data.corpus import encoded_vocab_size, open_corpus
from txl.data.standard_library import list_library_files, split_library_files
from txl.data.text_source import TextSource
from txl.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
WORDS, BYTES, CHARACTERS = VocabKind.word, VocabKind.byte, VocabKind.char
TRAIN = " = Title = \n\nthe cat sat\u00a0on the mat , the dog\n<unk> ate\n naïve 東京 the"
VALID, TEST = "the dog sat\n", "the\n zebra \n"


def config(folder, **changes) -> DataConfig:
    values = dict(name="mine", path=str(folder), split=[0.9, 0.05, 0.05], vocab=WORDS, lower_case=False, min_freq=0)
    values |= dict(cutoffs=[], metric=Metric.ppl, cache=str(folder / "cache"))
    return DataConfig(**values | changes)


def write(folder, **files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "text", train=TRAIN, valid=VALID, test=TEST)


def decoded(corpus, split):
    return corpus.vocab.decode(corpus.tokens(split))


def refuse_to_encode(monkeypatch):
    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextSource, "build", refuse)


# --------------------------------------------------------------------------- encoding


def test_words_are_encoded_with_the_vocabulary_of_train(text):
    corpus = open_corpus(config(text))
    assert corpus.splits == ("train", "valid", "test")
    assert decoded(corpus, "train") == "= Title =\n\nthe cat sat on the mat , the dog\n<unk> ate\nnaïve 東京 the\n"
    assert decoded(corpus, "test") == "the\n<unk>\n"
    assert corpus.vocab.words[:3] == ("<eos>", "the", "=") and corpus.tokens("train").dtype == np.uint8
    assert (corpus.name, corpus.metric) == ("mine", Metric.ppl)


def test_bytes_have_the_values_of_every_split(text):
    corpus = open_corpus(config(text, vocab=BYTES))
    assert corpus.vocab.values.tolist() == sorted(set((TRAIN + VALID + TEST).encode()))
    assert [decoded(corpus, split) for split in corpus.splits] == [TRAIN, VALID, TEST]


def test_characters_are_those_of_train_with_unk_where_others_need_it(text):
    corpus = open_corpus(config(text, vocab=CHARACTERS))
    assert corpus.vocab.characters == "".join(sorted(set(TRAIN))) and corpus.vocab.unk_id == len(set(TRAIN))
    assert decoded(corpus, "train") == TRAIN and decoded(corpus, "test") == "the\n <unk>e<unk><unk>a \n"
    (text / "test.txt").unlink()
    assert open_corpus(config(text, vocab=CHARACTERS)).vocab.unk_id is None


@pytest.mark.parametrize("words, dtype", [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.int32)])
def test_token_files_use_the_narrowest_type(tmp_path, words, dtype):
    folder = write(tmp_path, train=" ".join(map(str, range(words))), valid="0")
    corpus = open_corpus(config(folder))
    assert len(corpus.vocab) == words + 1 and corpus.tokens("train").dtype == dtype
    assert corpus.tokens("train").tolist() == [*range(1, words + 1), 0]


def test_words_are_numbered_as_a_plain_loop_over_lines_would(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{n}" for n in rng.zipf(1.3, rng.integers(0, 30))) for _ in range(4000)]
    corpus = open_corpus(config(write(tmp_path, train="\n".join(lines), valid=lines[3])))
    assert list(corpus.vocab.words) == ["<eos>", *(w for w, _ in Counter(" ".join(lines).split()).most_common())]
    tokens = [word for line in lines for word in [*line.split(), "<eos>"]]
    assert [corpus.vocab.words[i] for i in corpus.tokens("train")] == tokens
    files = ["meta.json", "train.bin", "valid.bin", "vocabulary.json"]
    assert sorted(path.name for path in corpus.folder.iterdir()) == files


def test_words_left_out_become_unk(text):
    corpus = open_corpus(config(text, min_freq=2, lower_case=True))
    assert corpus.vocab.words == ("<eos>", "the", "=", "<unk>")
    assert decoded(corpus, "valid") == "the <unk> <unk>\n"


@pytest.mark.parametrize("option", [{"min_freq": 2}, {"max_size": 1000}])
def test_the_remedy_for_an_unknown_word_helps_where_train_has_no_rare_word(tmp_path, option):
    folder = write(tmp_path, train="a b\n" * 9, valid="a zebra\n")
    with pytest.raises(ConfigError, match="data.min_freq=2 makes an <unk>"):
        open_corpus(config(folder))
    corpus = open_corpus(config(folder, **option))
    assert corpus.vocab.words == ("<eos>", "a", "b", "<unk>") and decoded(corpus, "valid") == "a <unk>\n"


def test_the_share_of_unknown_tokens_is_said_at_every_start(text, caplog):
    caplog.set_level(logging.INFO)
    for attempt in range(2):
        corpus_module.log_once.cache_clear()  # as in another process
        corpus = open_corpus(config(text))
        assert corpus.unknown == {"train": 1 / 22, "valid": 0, "test": 1 / 4}
        assert caplog.text.count("unknown: train 4.5 %, valid 0.0 %, test 25.0 %") == attempt + 1
        warning = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warning) == attempt + 1 and "25.0 % of the test split is unknown (<unk>)" in warning[-1]
        assert "data.vocab=char" in warning[-1]
    assert open_corpus(config(text, vocab=BYTES)).unknown == {}


def test_another_vocabulary_size_than_expected_is_said_at_every_start(text, caplog):
    for attempt in range(2):
        corpus_module.log_once.cache_clear()  # as in another process
        open_corpus(config(text, vocab_size=267_735))
        assert caplog.text.count("data.vocab_size=267735 was expected, the text has 14") == attempt + 1


def test_a_corpus_that_was_encoded_before_unknown_tokens_were_counted_is_opened(text):
    corpus = open_corpus(config(text))
    meta = json.loads((corpus.folder / "meta.json").read_text())
    for entry in meta["splits"].values():
        del entry["unknown"], entry["crc32"]
    del meta["digest"]
    (corpus.folder / "meta.json").write_text(json.dumps(meta))
    again = open_corpus(config(text))
    assert again.unknown == {} and again.fingerprint == corpus.fingerprint


# --------------------------------------------------------------------------- once


def test_a_second_start_only_opens(text, monkeypatch):
    first = open_corpus(config(text))
    refuse_to_encode(monkeypatch)
    second = open_corpus(config(text))
    assert second.folder == first.folder and second.fingerprint == first.fingerprint
    assert isinstance(second.tokens("train"), np.memmap) and not second.tokens("train").flags.writeable
    assert second.tokens("train").tolist() == first.tokens("train").tolist()


@pytest.mark.parametrize("change", [{"vocab": BYTES}, {"lower_case": True}, {"min_freq": 2}, {"max_size": 3}])
def test_another_tokenization_encodes_anew(text, change):
    assert open_corpus(config(text, **change)).fingerprint != open_corpus(config(text)).fingerprint


def test_a_changed_file_encodes_anew(text):
    before = open_corpus(config(text))
    (text / "valid.txt").write_text(VALID.replace("dog", "cat"))  # as many bytes
    after = open_corpus(config(text))
    assert decoded(after, "valid") == "the cat sat\n" and after.fingerprint != before.fingerprint
    assert decoded(before, "valid") == VALID  # whoever has it open keeps it


def test_the_same_text_elsewhere_is_the_same_data(text, tmp_path):
    moved = write(tmp_path / "moved", train=TRAIN, valid=VALID, test=TEST)
    assert open_corpus(config(moved)).fingerprint == open_corpus(config(text)).fingerprint


def test_a_file_that_changes_while_it_is_read_is_an_error(text, monkeypatch):
    def split_and_touch(*arguments):
        spans = splits.split_text(*arguments)
        (text / "train.txt").write_text(TRAIN + " more")
        return spans

    monkeypatch.setattr(text_source, "split_text", split_and_touch)
    with pytest.raises(ConfigError, match="changed while"):
        open_corpus(config(text))
    assert not [path for path in (text / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("file", ["train.bin", "meta.json", "vocabulary.json"])
def test_damaged_token_files_are_made_anew(text, file, caplog):
    before = open_corpus(config(text))
    damaged = before.folder / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    after = open_corpus(config(text))
    assert "damaged" in caplog.text and after.fingerprint == before.fingerprint
    assert decoded(after, "train") == decoded(before, "train")


OPEN = """
import pickle, sys, time
from txl.data import corpus as data
from txl.data.text_source import TextSource
build, encoded = TextSource.build, []
def slow(*arguments):
    encoded.append(1)
    time.sleep(0.3)
    build(*arguments)
def endless(source, folder):
    (folder / "train.bin").write_bytes(b"half")
    time.sleep(60)
TextSource.build = {"slow": slow, "endless": endless}[sys.argv[2]]
print("ready", flush=True)
sys.stdin.readline()
corpus = data.open_corpus(pickle.loads(bytes.fromhex(sys.argv[1])))
print(len(encoded), corpus.fingerprint, corpus.tokens("train").tolist(), "torch" in sys.modules)
"""


def opening(data: DataConfig, how: str) -> subprocess.Popen:
    """A process that opens the corpus as soon as it gets a line."""
    command = [sys.executable, "-c", OPEN, pickle.dumps(data).hex(), how]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, **pipes)


def test_encoding_runs_once_when_eight_processes_start(text):
    processes = [opening(config(text), "slow") for _ in range(8)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 8
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].split(maxsplit=1) for process in processes]
    assert sorted(encoded for encoded, _ in told) == ["0"] * 7 + ["1"]
    assert len({opened for _, opened in told}) == 1 and told[0][1].endswith("] False\n")  # all the same, without torch


def test_the_next_start_does_the_work_of_one_that_was_killed(text):
    process = opening(config(text), "endless")
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while not list((text / "cache").glob(".mine-*.draft/train.bin")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    corpus = open_corpus(config(text))
    assert decoded(corpus, "valid") == VALID
    names = {path.name for path in (text / "cache").iterdir()}
    assert names == {corpus.folder.name, f".{corpus.folder.name}.lock"}


def test_without_locks_the_work_is_done_all_the_same(text, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert decoded(open_corpus(config(text)), "valid") == VALID and "no locks" in caplog.text


def test_without_locks_the_first_one_done_is_used_by_all(text, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    build = TextSource.build

    def be_overtaken(*arguments):
        build(*arguments)
        monkeypatch.setattr(TextSource, "build", build)
        overtaking.append(open_corpus(config(text)).folder.stat().st_ino)

    overtaking = []
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(TextSource, "build", be_overtaken)
    assert [open_corpus(config(text)).folder.stat().st_ino] == overtaking


def test_a_cache_that_cannot_be_written_is_named(text, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"data.cache={tmp_path}/file/cache cannot be written"):
        open_corpus(config(text, cache=str(tmp_path / "file" / "cache")))


def test_the_vocabulary_size_is_known_once_encoded(text):
    assert encoded_vocab_size(config(text)) is None
    corpus = open_corpus(config(text))
    assert encoded_vocab_size(config(text)) == len(corpus.vocab)
    assert encoded_vocab_size(config(text / "nowhere")) is None


# --------------------------------------------------------------------------- where the text is

LAYOUTS = {
    "prepared": ({"train.txt": "a b", "valid.txt": "a", "test.txt": "b"}, {}),
    "wikitext": ({"wiki.train.tokens": "a b", "wiki.valid.tokens": "a", "wiki.test.tokens": "b"}, {}),
    "penn_treebank": ({"ptb.train.txt": "a b", "ptb.valid.txt": "a", "ptb.test.txt": "b"}, {}),
    "named": ({"x": "a b", "y": "a", "z": "b"}, {"train": "x", "valid": "y", "test": "z"}),
    "one_named": ({"train.txt": "a b", "valid.txt": "b", "y": "a", "test.txt": "b"}, {"valid": "y"}),
}


@pytest.mark.parametrize("files, changes", LAYOUTS.values(), ids=LAYOUTS)
def test_files_are_found_in_their_layouts(tmp_path, files, changes):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    corpus = open_corpus(config(tmp_path, **changes))
    assert [decoded(corpus, split) for split in corpus.splits] == ["a b\n", "a\n", "b\n"]


def test_files_are_relative_to_where_one_is_without_a_path(text, monkeypatch):
    monkeypatch.chdir(text)
    corpus = open_corpus(config(text, path=None, train="train.txt", valid="valid.txt", cache="cache"))
    assert corpus.splits == ("train", "valid")
    with pytest.raises(ConfigError, match="data=mine has no test split.*data.test"):
        corpus.tokens("test")


@pytest.mark.parametrize("name, path", [("enwik8", ""), ("text8", ""), ("other", "enwik8")])
def test_one_file_is_cut_by_its_published_sizes(tmp_path, name, path):
    (tmp_path / (path or name)).write_text("aaaabbc and more")
    data = config(tmp_path, name=name, path=str(tmp_path / path), vocab=BYTES, split_bytes=[4, 2, 1])
    corpus = open_corpus(data)
    assert [decoded(corpus, split) for split in corpus.splits] == ["aaaa", "bb", "c"]


def test_what_the_original_prepared_is_read_from_its_raw_files(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("97 98 97")
        (tmp_path / f"{split}.txt.raw").write_text("aba")
    corpus = open_corpus(config(tmp_path, name="enwik8", vocab=BYTES, split_bytes=[4, 2, 1]))
    assert decoded(corpus, "train") == "aba"


@pytest.mark.parametrize(
    "kind, split, expected",
    [
        (CHARACTERS, [0.9, 0.1], ["\n" + "é" * 17, "éé"]),  # of 20 characters
        (BYTES, [0.83, 0.12, 0.05], ["\n" + "é" * 15 + "\ufffd", "\ufffdéé", "é"]),  # of 39 bytes
    ],
)
def test_one_file_is_cut_at_exact_shares(tmp_path, kind, split, expected):
    (tmp_path / "a").write_text("\n" + "é" * 19)
    corpus = open_corpus(config(tmp_path, file="a", split=split, vocab=kind))
    assert [decoded(corpus, s) for s in corpus.splits] == expected


def test_one_file_of_words_is_cut_where_lines_begin(tmp_path):
    lines = [f"{'word ' * (i % 3)}end" for i in range(100)]
    (tmp_path / "a").write_text("\n".join(lines))
    corpus = open_corpus(config(tmp_path, file="a", split=[0.8, 0.1, 0.1]))
    texts = [decoded(corpus, split) for split in corpus.splits]
    assert "".join(texts) == "\n".join(lines) + "\n" and all(text.endswith("end\n") for text in texts)
    assert abs(len(texts[0]) - 0.8 * sum(map(len, texts))) < 20


def test_nine_tenths_of_a_play_are_as_many_characters_as_everybody_takes(tmp_path):
    (tmp_path / "a").write_text("x" * 1_115_394)
    corpus = open_corpus(config(tmp_path, file="a", split=[0.9, 0.1], vocab=CHARACTERS))
    assert [len(corpus.tokens(split)) for split in corpus.splits] == [1_003_854, 111_540]


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", VocabKind)
def test_an_empty_file_is_named(text, kind):
    (text / "valid.txt").write_text("")
    with pytest.raises(ConfigError, match=f"data.valid={text}/valid.txt is empty"):
        open_corpus(config(text, vocab=kind))


def test_a_file_without_a_newline_at_its_end_has_a_last_line(tmp_path):
    corpus = open_corpus(config(write(tmp_path, train="a b\na", valid="a")))
    assert corpus.tokens("train").tolist() == [1, 2, 0, 1, 0] and corpus.tokens("valid").tolist() == [1, 0]


@pytest.mark.parametrize("kind", [WORDS, CHARACTERS])
def test_what_is_not_utf8_is_named_by_file_and_line(text, kind):
    (text / "valid.txt").write_bytes(b"the\r\ndog\n\xe9t\xe9 the\n")
    with pytest.raises(ConfigError, match=rf"data.valid={text}/valid.txt: line 3 is not UTF-8 \(byte 0xe9\)"):
        open_corpus(config(text, vocab=kind))
    assert decoded(open_corpus(config(text, vocab=BYTES)), "valid") == "the\r\ndog\n\ufffdt\ufffd the\n"


def test_a_word_that_train_lacks_is_named_by_file_and_line(tmp_path):
    write(tmp_path, train="a b\n", valid="a\n\nb zebra a\nyak\n")
    with pytest.raises(
        ConfigError, match=f"data.valid={tmp_path}/valid.txt: line 3: the word 'zebra'.*data.min_freq=2"
    ):
        open_corpus(config(tmp_path))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_an_unknown_word_of_one_cut_file_has_its_line_in_the_whole_file(tmp_path):
    (tmp_path / "a").write_text("a\n" * 9 + "zebra\n")
    with pytest.raises(ConfigError, match="data.file=.*: line 10: the word 'zebra'"):
        open_corpus(config(tmp_path, file="a", split=[0.7, 0.3]))


def test_missing_data_names_the_folder_and_the_two_ways_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TXL_DATA", raising=False)
    with pytest.raises(ConfigError) as error:
        open_corpus(config(tmp_path, name="wt103", path="data/wt103"))
    for words in (f"{tmp_path}/data/wt103", "txl download wt103,", "experiment=demo", "wiki.train.tokens"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({"name": "wt103"}, "txl download wt103 --to {}"),
        ({"name": "mine"}, "put train.txt, valid.txt and test.txt there"),
    ],
)
def test_missing_data_says_how_to_get_it(tmp_path, changes, remedy):
    with pytest.raises(ConfigError) as error:
        open_corpus(config(tmp_path, **changes))
    assert remedy.format(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "files, changes, words",
    [
        (["train"], {}, "data.valid={}/valid.txt: No such file"),
        (["train", "valid"], {"test": "none.txt"}, "data.test={}/none.txt: No such file"),
        (["train"], {"file": "none.txt"}, "data.file={}/none.txt: No such file"),
        (["train"], {"file": "."}, "data.file={} is not a file"),
        (["train"], {"path": None}, "data.train names no file"),
        (["train"], {"file": "train.txt", "split": [0.01, 0.99]}, "data.split=[0.01,0.99] leaves no text for train"),
        (["train"], {"file": "train.txt", "split_bytes": [90, 5, 5]}, "data.split_bytes=[90,5,5] needs 100 bytes"),
        ([], {"max_bytes": 5}, "data.max_bytes=5 leaves no text for"),
    ],
)
def test_files_that_do_not_fit_the_options_are_named(tmp_path, files, changes, words):
    changes = {"vocab": BYTES, **changes}
    write(tmp_path, **{name: "some text" for name in files})
    with pytest.raises(ConfigError) as error:
        open_corpus(config(tmp_path, **changes))
    assert words.format(tmp_path) in str(error.value)


# --------------------------------------------------------------------------- the standard library


def test_the_standard_library_makes_the_same_corpus_every_time(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = config(tmp_path, name="stdlib", path=None, vocab=BYTES, max_bytes=200_000, metric=Metric.bpc)
    one, two = open_corpus(data), open_corpus(replace(data, cache=str(tmp_path / "other")))
    assert one.fingerprint == two.fingerprint and one.fingerprint in caplog.text
    sizes = {split: len(one.tokens(split)) for split in one.splits}
    assert 190_000 < sum(sizes.values()) <= 200_000
    assert all(0.02 < sizes[split] / sum(sizes.values()) < 0.1 for split in ("valid", "test"))
    assert decoded(one, "train").endswith("\n") and "import" in decoded(one, "test")


def test_the_standard_library_is_read_once(tmp_path, monkeypatch):
    data = config(tmp_path, name="stdlib", path=None, vocab=BYTES, max_bytes=100_000)
    first = open_corpus(data)
    monkeypatch.setattr(standard_library, "split_library_files", None)
    assert open_corpus(data).folder == first.folder


def test_every_library_file_is_in_one_split_in_order_of_its_path(tmp_path):
    names = [f"{letter}.py" for letter in "abcdefghijklmnopqrstuvwxyz" * 1] + [f"x/{i}.py" for i in range(40)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text("never")
    found = list_library_files(tmp_path)
    texts = split_library_files(tmp_path, list(found), 10_000)
    lines = {split: text.decode().splitlines() for split, text in texts.items()}
    assert all(lines[split] == sorted(lines[split]) for split in lines)
    assert sorted(sum(lines.values(), [])) == sorted(f"# {name}" for name in names)
