"""Text as streams of token ids.

    corpus = open_corpus(config.data)            encoded on first use, once for all processes and runs
    corpus.vocab                                 vocab.py
    corpus.splits                                ("train", "valid", "test"), or without test
    corpus.tokens("train")                       a memory-mapped array of ids: opening it costs nothing
    corpus.shards                                sentences in any order: tokens of each file of train; else None
    corpus.fingerprint                           equal where ids and vocabulary are equal, wherever the files are
    corpus.name, corpus.metric                   as configured

    stream = TokenStream(corpus.tokens("train"), batch_size=64, tgt_len=192)
    batch = stream.next()                        batch.input, batch.target [B, T]

What a run trains on: sentences.training_stream.

Shapes: B columns (sequences of a batch), T segment length. Only batches need torch; encoding does not.
"""

import logging
import re
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from txl.config.data import DataConfig, VocabKind
from txl.data.bpe import read_bpe
from txl.data.build_once import made_once
from txl.data.encode import encode
from txl.data.find_files import find_files, find_vocabulary, identity
from txl.data.splits import SPLITS, Files, cut
from txl.data.vocabulary import EOS, UNK, Vocabulary, WordVocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_json

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


FORMAT = 1  # of the token files; another number: they are made anew


class Corpus:
    """An encoded data set."""

    def __init__(self, folder: Path, data: DataConfig):
        self.folder, self.name, self.metric = folder, data.name, data.metric
        meta = read_json(folder / "meta.json")
        self.vocab = vocabulary_from_dict(read_json(folder / "vocabulary.json"))
        self.fingerprint: str = meta["fingerprint"]
        self.splits = tuple(split for split in SPLITS if split in meta["splits"])
        self.shards: list[int] | None = meta["splits"]["train"].get("shards")
        self._dtype = np.dtype(meta["dtype"])

    def tokens(self, split: str) -> np.ndarray:
        """Ids, [tokens] uint8, uint16 or int32, read-only. ConfigError where the data set has no such split."""
        if split not in self.splits:
            raise ConfigError(
                f"data={self.name} has no {split} split; it has {', '.join(self.splits)}; give data.{split}"
            )
        return np.memmap(self.folder / f"{split}.bin", self._dtype, mode="r")


def open_corpus(data: DataConfig, vocabulary: Vocabulary | None = None) -> Corpus:
    """The encoded data set; encoded now if its text, or how it is to be read, is new.

    vocabulary: takes the place of the one that files hold (data.vocab_file) where these are gone.

    Safe when many processes start at once: one works, the others wait. Raises ConfigError for text that is missing,
    empty, not UTF-8, or has words outside a vocabulary without `<unk>`.
    """
    files, tables = find_files(data), _find_vocabulary(data, vocabulary)
    instead = vocabulary if data.vocab_file and not tables else None
    sources, words = identity(files), identity(tables)

    def make(draft: Path) -> None:
        log.info("encoding data=%s (%s)", data.name, ", ".join(map(_several, files.values())))
        began = time.perf_counter()
        encode(cut(files, data), data, draft, sources, instead or _read_vocabulary(data, tables))
        if (identity(files), identity(tables)) != (sources, words):
            raise ConfigError(f"data={data.name}: its files changed while they were read; start again")
        log.info("encoded data=%s in %.1f s", data.name, time.perf_counter() - began)

    folder = _cache_folder(data, sources, instead.fingerprint if instead else words)
    corpus = Corpus(made_once(folder, make, _is_whole), data)
    sizes = ", ".join(f"{split} {len(corpus.tokens(split)):,}" for split in corpus.splits)
    _announce(f"data={data.name}: {sizes} tokens, vocabulary {len(corpus.vocab):,}, fingerprint {corpus.fingerprint}")
    return corpus


def _find_vocabulary(data: DataConfig, instead: Vocabulary | None) -> Files:
    try:
        return find_vocabulary(data)
    except ConfigError as error:
        if instead is None:
            raise
        log.info("%s; the checkpoint holds the vocabulary", error)
        return {}


def _read_vocabulary(data: DataConfig, tables: Files) -> Vocabulary | None:
    """The one that files hold; None: it is to be made of the text."""
    paths = [paths[0] for paths in tables.values()]
    if not paths:
        return None
    if data.vocab is VocabKind.bpe:
        return read_bpe(*paths)
    return WordVocabulary.read(*paths, data.lower_case, eos=data.eos, unk=data.unk, sentences=data.sentences)


def _several(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


@cache
def _announce(line: str) -> None:
    """Once, however often this process opens the corpus."""
    log.info(line)


def encoded_vocab_size(data: DataConfig) -> int | None:
    """Of a data set that is encoded already; None otherwise (this never encodes)."""
    try:
        folder = _cache_folder(data, identity(find_files(data)), identity(find_vocabulary(data)))
    except ConfigError:
        return None
    return read_json(folder / "meta.json")["vocab_size"] if _is_whole(folder) else None


def given_vocab_size(data: DataConfig) -> int | None:
    """Of the vocabulary that files hold; None where none is named, or is there. ConfigError for what it must not be."""
    try:
        tables = find_vocabulary(data)
    except ConfigError:
        return None
    return len(_read_vocabulary(data, tables)) if tables else None


def _cache_folder(data: DataConfig, sources: list[dict], vocabulary: list[dict] | str) -> Path:
    """Named by everything that the token files depend on. vocabulary: its files, or its content's fingerprint."""
    how: dict[str, Any] = {"format": FORMAT, "vocab": data.vocab.name, "sources": sources}
    if data.vocab is VocabKind.word:
        how |= {"lower_case": data.lower_case, "min_freq": data.min_freq, "max_size": data.max_size}
        names = {"eos": data.eos, "unk": data.unk, "sentences": data.sentences}
        how |= names if names != {"eos": EOS, "unk": UNK, "sentences": False} else {}
    if vocabulary:
        how["vocabulary"] = vocabulary
    if sources[0]["key"] == "file":
        how |= {"split_bytes": data.split_bytes} if data.split_bytes else {"split": data.split}
    name = re.sub(r"[^\w.+-]", "_", data.name)
    return Path(data.cache).expanduser() / f"{name}-{sha256_of_json(how)[:16]}"


def _is_whole(folder: Path) -> bool:
    meta = read_json(folder / "meta.json")
    if meta is None:
        return False
    width = np.dtype(meta["dtype"]).itemsize
    sizes = {f"{split}.bin": entry["tokens"] * width for split, entry in meta["splits"].items()}
    sizes["vocabulary.json"] = meta["vocab_bytes"]
    files = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())
