"""Open a data set as arrays of token ids, after encoding it on first use.

    corpus = open_corpus(config.data)            encoded once for all processes and runs
    corpus.vocab                                 its Vocabulary
    corpus.splits                                ("train", "valid", "test"), or without test
    corpus.tokens("train")                       a memory-mapped array of ids; opening it reads nothing
    corpus.shards                                sentences without order: tokens of each file of train; else None
    corpus.fingerprint                           equal if ids and vocabulary are equal, wherever the files are
    corpus.unknown                               {split: share of unknown tokens} of a vocabulary with `<unk>`
    corpus.name, corpus.metric                   as configured
    corpus.notes                                 what is logged about it at every start

    stream = TokenStream(corpus.tokens("train"), batch_size=64, tgt_len=192)
    batch = stream.next()                        batch.input, batch.target [B, T]

A run trains on `sentence_batches.training_stream`.

Shapes: B columns (sequences of a batch), T segment length. Only batches need torch; encoding does not.
"""

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from txl.config.choose_vocab import choice_reason
from txl.config.data import MOST_UNKNOWN, SPLITS, DataConfig, describe_unknown
from txl.data.build_once import build_once
from txl.data.corpus_folder import VOCABULARY, StoredCorpus, open_token_file, read_meta
from txl.data.given_vocabulary import GivenVocabulary
from txl.data.standard_library import has_library_text
from txl.data.token_source import TokenSource, open_source
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_json

log = logging.getLogger(__name__)


class Corpus:
    """An encoded data set in its folder."""

    def __init__(self, folder: Path, data: DataConfig):
        self.folder, self.name, self.metric = folder, data.name, data.metric
        self._meta = read_meta(folder) or {}
        self.vocab = vocabulary_from_dict(read_json(folder / VOCABULARY))
        self.fingerprint: str = self._meta["fingerprint"]
        self.splits = tuple(split for split in SPLITS if split in self._meta["splits"])
        self.shards: list[int] | None = self._meta["splits"]["train"].get("shards")
        self.unknown = unknown_shares(self._meta) if self.vocab.unk_id is not None else {}
        self.notes = _describe(self, data)

    def tokens(self, split: str) -> np.ndarray:
        """[tokens] integer ids, memory-mapped, read-only. Raises ConfigError if the data set has no such split."""
        if split not in self.splits:
            raise ConfigError(
                f"data={self.name} has no {split} split; it has {', '.join(self.splits)}; give data.{split}"
            )
        return open_token_file(self.folder, self._meta, split)


def open_corpus(data: DataConfig, vocabulary: Vocabulary | None = None, splits: tuple[str, ...] = SPLITS) -> Corpus:
    """Open the encoded data set; encode it now if its files or the way to read them are new, or if it is damaged.

    When many processes start at once, one encodes, or compares the ids with their checksums, and the others wait.

    Args:
        data: Options of the data set.
        vocabulary: The vocabulary to use if the files that hold it (data.vocab_file) no longer exist.
        splits: The splits whose ids are going to be read; the content of the others is not checked.

    Raises:
        ConfigError: If text is missing, empty, not UTF-8, or contains words outside a vocabulary without `<unk>`;
            and if the user's own files of ids are damaged.
    """
    source = open_source(data, vocabulary)
    stored = StoredCorpus(_cache_folder(data, source), source.key(), splits)
    build_once(stored.folder, source.build, lambda _: stored.find_damage(), lambda _: stored.is_checked())
    corpus = Corpus(stored.folder, data)
    if logging.getLogger("txl").hasHandlers():  # a rank that has no log yet says it when it has one
        for level, line in corpus.notes:
            log_once(level, line)
    return corpus


def encoded_meta(data: DataConfig) -> dict[str, Any] | None:
    """What is known of a data set that is encoded already (`vocab_size`, `splits`), else None; never writes."""
    if data.max_bytes is not None and not has_library_text(Path(data.cache), data.max_bytes):
        return None
    try:
        source = open_source(data)
    except ConfigError:
        return None
    stored = StoredCorpus(_cache_folder(data, source), source.key(), ())
    return read_meta(stored.folder) if stored.is_checked() else None


def encoded_vocab_size(data: DataConfig) -> int | None:
    """The vocabulary size of a data set that is encoded already, else None; this function never encodes."""
    meta = encoded_meta(data)
    return None if meta is None else int(meta["vocab_size"])


def unknown_shares(meta: dict[str, Any]) -> dict[str, float]:
    """{split: share of its tokens that are unknown}; {} in a folder of an earlier version, which does not say it."""
    splits = {split: meta["splits"][split] for split in SPLITS if "unknown" in meta["splits"].get(split, {})}
    return {split: entry["unknown"] / max(1, entry["tokens"]) for split, entry in splits.items()}


def vocab_size_from_files(data: DataConfig) -> int | None:
    """The size of the vocabulary that files hold; None if no file is named or one is missing.

    Raises ConfigError for files with other content.
    """
    try:
        given = GivenVocabulary(data)
    except ConfigError:
        return None
    vocabulary = given.read()
    return None if vocabulary is None else len(vocabulary)


def _cache_folder(data: DataConfig, source: TokenSource) -> Path:
    """The folder whose name is a digest of everything that the token files depend on."""
    name = re.sub(r"[^\w.+-]", "_", data.name)
    return Path(data.cache).expanduser() / f"{name}-{sha256_of_json(source.key())[:16]}"


def _describe(corpus: Corpus, data: DataConfig) -> list[tuple[int, str]]:
    """(level, line): what the corpus is, and warnings about what it can hardly be."""
    sizes = ", ".join(f"{split} {len(corpus.tokens(split)):,}" for split in corpus.splits)
    size = len(corpus.vocab)
    notes = [(logging.INFO, f"data={data.name}: {sizes} tokens, vocabulary {size:,}")]
    reason = choice_reason(data.path, data.file)
    if reason is not None:
        notes.append((logging.INFO, f"data.vocab={data.vocab.name} was chosen for {data.file}: {reason}"))
    if corpus.unknown:
        notes.append((logging.INFO, f"unknown: {describe_unknown(corpus.unknown)}"))
    if data.vocab_size not in (None, size):
        found = f"data.vocab_size={data.vocab_size} was expected, the text has {size}"
        notes.append((logging.WARNING, f"{found}: not the published text, or prepared in another way"))
    worst = max(corpus.unknown, key=corpus.unknown.__getitem__, default="")
    if worst and corpus.unknown[worst] > MOST_UNKNOWN:
        share = f"{100 * corpus.unknown[worst]:.1f} % of the {worst} split is unknown (<unk>)"
        remedy = "for a text without spaces or with many rare words, use data.vocab=char; or check the vocabulary"
        line = f"data={data.name}: {share}: the loss says little about this text; {remedy}"
        notes.append((logging.WARNING, line))
    return [*notes, (logging.INFO, f"fingerprint {corpus.fingerprint}")]


@cache
def log_once(level: int, line: str) -> None:
    """Log a line once, however often this process opens the corpus."""
    log.log(level, line)


def log_notes_to_files(corpus: Corpus) -> None:
    """Write the corpus's notes into the log files of a run, which were opened after the console had them."""
    for level, line in corpus.notes:
        log.log(level, line, extra={"console": False})
