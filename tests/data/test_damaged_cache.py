"""Whatever happens to the files of an encoded data set: training reads the right ids, or one line says why not."""

import json
import os
import shutil
import threading

import numpy as np
import pytest

from tests.support.configurations import composed
from tests.support.damage import DAMAGES, flip_bit, zero_region
from tests.support.made_data import write_splits
from txl.data import corpus_folder
from txl.data.corpus import encoded_vocab_size, open_corpus
from txl.data.text_source import TextSource
from txl.errors import ConfigError

SPLITS = ("train", "valid", "test")
FILES = ("train.bin", "valid.bin", "vocabulary.json", "meta.json", "checked.json")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with a text and its cache."""
    folder = tmp_path_factory.mktemp("intact")
    write_splits(folder / "text", "{}.txt")
    open_corpus(text_config(folder, folder / "cache"))
    return folder


def text_config(folder, cache, *options):
    names = [f"data.{split}={folder}/text/{split}.txt" for split in SPLITS]
    return composed("data=text", *names, f"data.cache={cache}", *options).data


@pytest.fixture
def cached(intact, tmp_path):
    """(options, the folder of a cache of its own, what it must hold)"""
    shutil.copytree(intact / "cache", tmp_path / "cache")
    data = text_config(intact, tmp_path / "cache")
    corpus = open_corpus(data)
    return data, corpus.folder, content(corpus)


def content(corpus):
    return corpus.fingerprint, corpus.vocab.fingerprint, [corpus.tokens(split).tolist() for split in corpus.splits]


def refuse_to_encode(monkeypatch):
    monkeypatch.setattr(TextSource, "build", lambda *_: pytest.fail("encoded again"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_the_cache_is_made_again(cached, file, damage, caplog):
    data, folder, expected = cached
    DAMAGES[damage](folder / file)
    assert content(open_corpus(data)) == expected
    if file != "checked.json":
        assert f"{folder} is damaged" in caplog.text and "built again" in caplog.text
    assert [path for path in folder.parent.iterdir() if path.suffix == ".draft"] == []
    assert content(open_corpus(data)) == expected and caplog.text.count("built again") <= 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_stands_where_the_cache_should_be_is_replaced(cached, damage):
    data, folder, expected = cached
    shutil.rmtree(folder)
    folder.write_bytes(b"some text that is not a folder")
    DAMAGES[damage](folder)
    assert content(open_corpus(data)) == expected


@pytest.mark.parametrize("damage", ["folder", "dangling_link", "fifo"])
def test_whatever_stands_where_the_lock_should_be_is_named(cached, damage, tmp_path):
    data, folder, _ = cached
    (folder / "meta.json").unlink()
    DAMAGES[damage](folder.with_name(f".{folder.name}.lock"))
    with pytest.raises(ConfigError, match=rf"data.cache={tmp_path}/cache cannot be written: .*\.lock") as error:
        open_corpus(data)
    assert "\n" not in str(error.value) and not (tmp_path / "cache" / "nowhere").exists()


@pytest.mark.parametrize("swapped", ["train.bin", "vocabulary.json", "meta.json", "the folder"])
def test_files_of_another_data_set_are_noticed(cached, intact, swapped, caplog):
    data, folder, expected = cached
    other = open_corpus(text_config(intact, folder.parent, "data.max_size=5"))
    assert content(other) != expected
    if swapped == "the folder":
        shutil.rmtree(folder)
        shutil.copytree(other.folder, folder)
    else:
        shutil.copyfile(other.folder / swapped, folder / swapped)
    assert content(open_corpus(data)) == expected and "built again" in caplog.text


def test_splits_that_were_swapped_are_noticed(cached):
    data, folder, expected = cached
    (folder / "valid.bin").rename(folder / "x")
    (folder / "test.bin").rename(folder / "valid.bin")
    (folder / "x").rename(folder / "test.bin")
    assert content(open_corpus(data)) == expected


def test_an_evaluation_checks_the_split_that_it_reads(cached):
    data, folder, expected = cached
    (folder / "checked.json").unlink()
    flip_bit(folder / "train.bin")
    kept = (folder / "train.bin").read_bytes()
    open_corpus(data, splits=("test",))
    assert (folder / "train.bin").read_bytes() == kept
    assert content(open_corpus(data)) == expected


# --------------------------------------------------------------------------- who checks


@pytest.fixture
def checks(monkeypatch):
    """The names of the files whose ids were compared with their checksums."""
    compare, checked = corpus_folder.first_damaged_byte, []

    def counted(path, *rest):
        checked.append(path.name)
        return compare(path, *rest)

    monkeypatch.setattr(corpus_folder, "first_damaged_byte", counted)
    return checked


def test_one_process_checks_and_the_others_rely_on_it(cached, checks, monkeypatch):
    data, folder, _ = cached
    assert checks == []  # the fixture's
    (folder / "checked.json").unlink()
    threads = [threading.Thread(target=open_corpus, args=[data]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checks == ["train.bin", "valid.bin", "test.bin"]
    monkeypatch.setattr(corpus_folder, "CHECK_HOLDS", 0)  # as after an hour
    open_corpus(data)
    assert len(checks) > 3


def test_a_cache_that_may_not_be_written_is_checked_and_used(cached, checks, monkeypatch):
    data, folder, expected = cached
    (folder / "checked.json").unlink()

    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    def open_to_read(path, flags, *rest, opened=os.open, **named):
        return read_only() if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", open_to_read)
    monkeypatch.setattr(corpus_folder, "write_json", read_only)
    assert content(open_corpus(data)) == expected and checks == ["train.bin", "valid.bin", "test.bin"]
    zero_region(folder / "train.bin")
    with pytest.raises(ConfigError, match="cannot be written.*train.bin is not what was written, from byte 0"):
        open_corpus(data)


def test_the_vocabulary_size_of_a_damaged_cache_is_not_known(cached):
    data, folder, _ = cached
    assert encoded_vocab_size(data) is not None
    flip_bit(folder / "vocabulary.json")
    assert encoded_vocab_size(data) is None


# --------------------------------------------------------------------------- earlier versions


@pytest.fixture
def earlier(cached):
    """The cache as an earlier version wrote it: without checksums of blocks and of its small files."""
    data, folder, expected = cached
    meta = json.loads((folder / "meta.json").read_text())
    for key in ("digest", "key", "vocab_sha256"):
        del meta[key]
    for entry in meta["splits"].values():
        del entry["crc32"]
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "checked.json").unlink()
    return data, folder, expected


def test_a_cache_without_checksums_is_verified_and_gets_them(earlier, monkeypatch, caplog):
    data, folder, expected = earlier
    with monkeypatch.context() as patch:
        refuse_to_encode(patch)
        assert content(open_corpus(data)) == expected
        meta = json.loads((folder / "meta.json").read_text())
        assert all(entry["crc32"] for entry in meta["splits"].values()) and meta["digest"]
    flip_bit(folder / "train.bin")
    assert content(open_corpus(data)) == expected and "train.bin is not what was written" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train.bin", "vocabulary.json", "meta.json"])
def test_a_damaged_cache_without_checksums_is_made_again(earlier, file, damage):
    data, folder, expected = earlier
    DAMAGES[damage](folder / file)
    assert content(open_corpus(data)) == expected


# --------------------------------------------------------------------------- ids of the user


@pytest.fixture
def ids(tmp_path):
    for split in SPLITS:
        np.save(tmp_path / f"{split}.npy", (np.arange(3000) % 200).astype(np.uint8))
    overrides = ["data=ids", f"data.path={tmp_path}", "data.vocab_size=200", f"data.cache={tmp_path}/cache"]
    data = composed(*overrides).data
    open_corpus(data)
    return data, tmp_path


def change_id(path, position, value):
    """Without another modification time."""
    status, array = path.stat(), np.load(path)
    array[position] = value
    np.save(path, array)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("value, words", [(7, ""), (250, "id 250 at 2,000 is outside the vocabulary of 200")])
def test_damaged_ids_of_the_user_are_refused(ids, value, words):
    data, folder = ids
    change_id(folder / "train.npy", 2000, value)
    with pytest.raises(ConfigError) as error:
        open_corpus(data)
    said = str(error.value)
    assert f"data.train={folder}/train.npy is damaged" in said and words in said and "touch it" in said
    assert "\n" not in said and len(said) <= 300 + len(str(folder))
    os.utime(folder / "train.npy")  # the remedy
    if value < 200:
        assert open_corpus(data).tokens("train")[2000] == value
    else:
        with pytest.raises(ConfigError, match="id 250 at position 2,000 .from 0. is outside the vocabulary of 200"):
            open_corpus(data)


def test_damaged_ids_of_an_earlier_cache_are_refused(ids):
    data, folder = ids
    [meta_file] = (folder / "cache").glob("ids-*/meta.json")
    meta = json.loads(meta_file.read_text())
    del meta["digest"]
    for entry in meta["splits"].values():
        del entry["crc32"]
    meta_file.write_text(json.dumps(meta))
    change_id(folder / "valid.npy", 5, 6)
    with pytest.raises(ConfigError, match="data.valid=.*/valid.npy is damaged"):
        open_corpus(data)


# --------------------------------------------------------------------------- the standard library's text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train.txt", "sha256.json"])
def test_a_damaged_text_of_the_standard_library_is_made_again(stdlib, tmp_path, file, damage):
    shutil.copytree(stdlib, tmp_path / "cache")
    data = composed("data=stdlib", "data.max_bytes=100000", f"data.cache={tmp_path}/cache").data
    expected = content(open_corpus(data))
    [damaged] = (tmp_path / "cache").glob(f"stdlib-text-*/{file}")
    DAMAGES[damage](damaged)
    assert content(open_corpus(data)) == expected


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stdlib")
    open_corpus(composed("data=stdlib", "data.max_bytes=100000", f"data.cache={folder}").data)
    return folder
