"""Text files into token files, once: `<split>.bin` (raw ids), `vocabulary.json` and `meta.json` in one folder.

Words are looked up once: one pass over the text numbers them in order of first appearance, and when all counts are
known the numbers are mapped to ids.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from txl.cache import write_json
from txl.choices import VocabKind
from txl.config import DataConfig
from txl.errors import ConfigError
from txl.text import Span, byte_blocks, character_blocks, line_number, word_blocks
from txl.vocab import (
    CODE_POINTS,
    UNK,
    ByteVocabulary,
    CharVocabulary,
    Vocabulary,
    WordVocabulary,
    code_points,
    split_words,
)
from txl.words import WordNumbers

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # ids held in memory at a time


def encode(spans: dict[str, Span], data: DataConfig, folder: Path, sources: list) -> None:
    """Write the token files of all splits into an existing folder. Raises ConfigError for text that cannot be encoded.

    `sources` is what meta.json says about the files that the spans are of.

    Bytes: the vocabulary is every value in any split. Characters: those of train, and `<unk>` if valid or test have
    others. Words: those of train (data.min_freq, data.max_size), and `<unk>` if some of them were left out.
    """
    encoders = {VocabKind.word: _encode_words, VocabKind.byte: _encode_bytes, VocabKind.char: _encode_characters}
    vocabulary, writers = encoders[data.vocab](spans, data, folder)
    if data.vocab_size not in (None, len(vocabulary)):
        log.warning(
            "data.vocab_size=%d was expected, the text has %d: not the published text, or prepared in another way",
            data.vocab_size,
            len(vocabulary),
        )
    splits = {writer.split: {"tokens": writer.tokens, "sha256": writer.hash.hexdigest()} for writer in writers}
    # The same ids and words are the same data, whatever files they came from.
    content = json.dumps([vocabulary.fingerprint, {split: entry["sha256"] for split, entry in splits.items()}])
    write_json(folder / "vocabulary.json", vocabulary.to_dict())
    meta = {
        "dtype": dtype_for(len(vocabulary)).name,
        "vocab_size": len(vocabulary),
        "vocab_bytes": (folder / "vocabulary.json").stat().st_size,
        "splits": splits,
        "sources": sources,
        "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
    }
    write_json(folder / "meta.json", meta)


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


class TokenWriter:
    """One split's token file: appends ids, counts and hashes them."""

    def __init__(self, folder: Path, split: str, vocabulary: Vocabulary):
        self.split, self.tokens, self.hash = split, 0, hashlib.sha256()
        self._path, self._dtype = folder / f"{split}.bin", dtype_for(len(vocabulary))

    def write(self, blocks: Iterator[np.ndarray]) -> "TokenWriter":
        with open(self._path, "wb") as file:
            for ids in blocks:
                data = ids.astype(self._dtype, copy=False).tobytes()
                file.write(data)
                self.hash.update(data)
                self.tokens += len(ids)
            file.flush()
            os.fsync(file.fileno())
        return self


Encoded = tuple[Vocabulary, list[TokenWriter]]

# --------------------------------------------------------------------------- bytes and characters


def _encode_bytes(spans: dict[str, Span], data: DataConfig, folder: Path) -> Encoded:
    seen = np.zeros(256, bool)
    for span in spans.values():
        for block in byte_blocks(span):
            seen[np.frombuffer(block, np.uint8)] = True
    vocabulary = ByteVocabulary(np.flatnonzero(seen).tolist())
    table = vocabulary.table.astype(np.uint8)  # at most 256 ids
    writers = []
    for split, span in spans.items():
        ids = (table[np.frombuffer(block, np.uint8)] for block in byte_blocks(span))
        writers.append(TokenWriter(folder, split, vocabulary).write(ids))
    return vocabulary, writers


def _encode_characters(spans: dict[str, Span], data: DataConfig, folder: Path) -> Encoded:
    seen = {split: np.zeros(CODE_POINTS, bool) for split in spans}
    for split, span in spans.items():
        for text in character_blocks(span):
            seen[split][code_points(text)] = True
    known = seen["train"]
    unk = any((other & ~known).any() for other in seen.values())
    vocabulary = CharVocabulary(map(chr, np.flatnonzero(known)), unk)
    writers = []
    for split, span in spans.items():
        ids = (vocabulary.table[code_points(text)] for text in character_blocks(span))
        writers.append(TokenWriter(folder, split, vocabulary).write(ids))
    return vocabulary, writers


# --------------------------------------------------------------------------- words


@dataclass
class Numbered:
    """A split's words as numbers, in order of first appearance, and what they are."""

    words: list[str]
    file: Path  # the numbers, int32

    def numbers(self) -> Iterator[np.ndarray]:
        with open(self.file, "rb") as file:
            while len(numbers := np.fromfile(file, np.int32, CHUNK)):
                yield numbers

    def counts(self) -> dict[str, int]:
        """How often each word stands there, in order of first appearance."""
        total = np.zeros(len(self.words), np.int64)
        for numbers in self.numbers():
            total += np.bincount(numbers, minlength=len(total))
        return dict(zip(self.words, total.tolist(), strict=True))


def _encode_words(spans: dict[str, Span], data: DataConfig, folder: Path) -> Encoded:
    texts = {split: _number(span, data.lower_case, folder / f"{split}.numbers") for split, span in spans.items()}
    counts = texts["train"].counts()
    vocabulary = WordVocabulary.from_counts(counts, data.lower_case, data.min_freq, data.max_size, unk_if_cut=True)
    writers = []
    for split, text in texts.items():
        table = _ids_of(text.words, vocabulary, spans[split])
        writers.append(TokenWriter(folder, split, vocabulary).write(table[n] for n in text.numbers()))
        text.file.unlink()
    return vocabulary, writers


def _number(span: Span, lower_case: bool, file: Path) -> Numbered:
    words = WordNumbers()
    with open(file, "wb") as out:
        for _, text in word_blocks(span):
            words.of(text.lower() if lower_case else text).tofile(out)
    return Numbered(words.words, file)


def _ids_of(words: list[str], vocabulary: WordVocabulary, span: Span) -> np.ndarray:
    """[len(words)] ids. ConfigError for the first word that has none."""
    unk = -1 if vocabulary.unk_id is None else vocabulary.unk_id
    ids = np.array([vocabulary.ids.get(word, unk) for word in words], np.int32)
    if ids.min() < 0:
        word = words[int(np.argmax(ids < 0))]
        raise ConfigError(
            f"{span}: line {_line_of(word, span, vocabulary.lower_case)}: the word {word!r} is not among the "
            f"{len(vocabulary):,} words of data.train, nor is {UNK}; data.min_freq=2 makes an {UNK} of rare words"
        )
    return ids.astype(dtype_for(len(vocabulary)))


def _line_of(word: str, span: Span, lower_case: bool) -> int:
    """The first line of the file, within the span, that has the word."""
    for offset, text in word_blocks(span):
        for number, line in enumerate(text.split("\n")):
            if word in split_words(line, lower_case):
                return line_number(span.path, offset) + number
    raise AssertionError(f"{word!r} is not in {span}")
