"""Open a data set as arrays of token ids, after encoding it on first use.

    corpus = open_corpus(config.data)            encoded once for all processes and runs
    corpus.vocab                                 its Vocabulary
    corpus.splits                                ("train", "valid", "test"), or without test
    corpus.tokens("train")                       a memory-mapped array of ids; opening it reads nothing
    corpus.shards                                sentences without order: tokens of each file of train; else None
    corpus.fingerprint                           equal if ids and vocabulary are equal, wherever the files are
    corpus.name, corpus.metric                   as configured

    stream = TokenStream(corpus.tokens("train"), batch_size=64, tgt_len=192)
    batch = stream.next()                        batch.input, batch.target [B, T]

A run trains on `sentence_batches.training_stream`.

Shapes: B columns (sequences of a batch), T segment length. Only batches need torch; encoding does not.
"""

import logging
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from txl.config.data import DataConfig, VocabKind
from txl.data.build_once import build_once
from txl.data.corpus_folder import is_complete_corpus
from txl.data.encode import encode_text
from txl.data.find_files import FileStamp, file_stamps, find_text_files, find_vocabulary_files
from txl.data.splits import SPLITS, split_text
from txl.data.vocabulary import EOS, UNK, Vocabulary, vocabulary_class, vocabulary_from_dict
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_json

log = logging.getLogger(__name__)

FORMAT = 1  # version of the token files; with another number they are encoded again


class Corpus:
    """An encoded data set in its folder."""

    def __init__(self, folder: Path, data: DataConfig):
        self.folder, self.name, self.metric = folder, data.name, data.metric
        meta = read_json(folder / "meta.json")
        self.vocab = vocabulary_from_dict(read_json(folder / "vocabulary.json"))
        self.fingerprint: str = meta["fingerprint"]
        self.splits = tuple(split for split in SPLITS if split in meta["splits"])
        self.shards: list[int] | None = meta["splits"]["train"].get("shards")
        self._dtype = np.dtype(meta["dtype"])

    def tokens(self, split: str) -> np.ndarray:
        """[tokens] uint8, uint16 or int32 ids, read-only. Raises ConfigError if the data set has no such split."""
        if split not in self.splits:
            raise ConfigError(
                f"data={self.name} has no {split} split; it has {', '.join(self.splits)}; give data.{split}"
            )
        return np.memmap(self.folder / f"{split}.bin", self._dtype, mode="r")


def open_corpus(data: DataConfig, vocabulary: Vocabulary | None = None) -> Corpus:
    """Open the encoded data set; encode it now if its text or the way to read it is new.

    When many processes start at once, one encodes and the others wait.

    Args:
        data: Options of the data set.
        vocabulary: The vocabulary to use if the files that hold it (data.vocab_file) no longer exist.

    Raises:
        ConfigError: If text is missing, empty, not UTF-8, or contains words outside a vocabulary without `<unk>`.
    """
    files, vocabulary_files = find_text_files(data), _find_vocabulary_files(data, vocabulary)
    given = vocabulary if data.vocab_file and not vocabulary_files else None
    stamps, vocabulary_stamps = file_stamps(files), _vocabulary_stamps(vocabulary_files)

    def build(draft: Path) -> None:
        log.info("encoding data=%s (%s)", data.name, ", ".join(map(_list_briefly, files.values())))
        began = time.perf_counter()
        used = given or vocabulary_class(data.vocab.name).from_files(vocabulary_files, data)
        encode_text(split_text(files, data), data, draft, stamps, used)
        if (file_stamps(files), _vocabulary_stamps(vocabulary_files)) != (stamps, vocabulary_stamps):
            raise ConfigError(f"data={data.name}: its files changed while they were read; start again")
        log.info("encoded data=%s in %.1f s", data.name, time.perf_counter() - began)

    folder = _cache_folder(data, stamps, given.fingerprint if given else vocabulary_stamps)
    corpus = Corpus(build_once(folder, build, is_complete_corpus), data)
    sizes = ", ".join(f"{split} {len(corpus.tokens(split)):,}" for split in corpus.splits)
    _log_once(f"data={data.name}: {sizes} tokens, vocabulary {len(corpus.vocab):,}, fingerprint {corpus.fingerprint}")
    return corpus


def encoded_vocab_size(data: DataConfig) -> int | None:
    """The vocabulary size of a data set that is encoded already, else None; this function never encodes."""
    try:
        vocabulary_stamps = _vocabulary_stamps(find_vocabulary_files(data))
        folder = _cache_folder(data, file_stamps(find_text_files(data)), vocabulary_stamps)
    except ConfigError:
        return None
    return int(read_json(folder / "meta.json")["vocab_size"]) if is_complete_corpus(folder) else None


def vocab_size_from_files(data: DataConfig) -> int | None:
    """The size of the vocabulary that files hold; None if no file is named or one is missing.

    Raises ConfigError for files with other content.
    """
    try:
        files = find_vocabulary_files(data)
    except ConfigError:
        return None
    vocabulary = vocabulary_class(data.vocab.name).from_files(files, data) if files else None
    return None if vocabulary is None else len(vocabulary)


def _find_vocabulary_files(data: DataConfig, replacement: Vocabulary | None) -> dict[str, Path]:
    try:
        return find_vocabulary_files(data)
    except ConfigError as error:
        if replacement is None:
            raise
        log.info("%s; the checkpoint holds the vocabulary", error)
        return {}


def _vocabulary_stamps(files: dict[str, Path]) -> list[FileStamp]:
    return file_stamps({key: [path] for key, path in files.items()})


def _cache_folder(data: DataConfig, stamps: list[FileStamp], vocabulary: list[FileStamp] | str) -> Path:
    """The folder whose name is a digest of everything that the token files depend on.

    `vocabulary`: the stamps of its files, or the fingerprint of its content.
    """
    key: dict[str, Any] = {"format": FORMAT, "vocab": data.vocab.name, "sources": stamps}
    if data.vocab is VocabKind.word:
        key |= {"lower_case": data.lower_case, "min_freq": data.min_freq, "max_size": data.max_size}
        names = {"eos": data.eos, "unk": data.unk, "sentences": data.sentences}
        key |= names if names != {"eos": EOS, "unk": UNK, "sentences": False} else {}
    if vocabulary:
        key["vocabulary"] = vocabulary
    if stamps[0]["key"] == "file":
        key |= {"split_bytes": data.split_bytes} if data.split_bytes else {"split": data.split}
    name = re.sub(r"[^\w.+-]", "_", data.name)
    return Path(data.cache).expanduser() / f"{name}-{sha256_of_json(key)[:16]}"


def _list_briefly(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


@cache
def _log_once(line: str) -> None:
    """Log a line once, however often this process opens the corpus."""
    log.info(line)
