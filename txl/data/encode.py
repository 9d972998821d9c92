"""Text files into token files, once: `<split>.bin` (raw ids), `vocabulary.json` and `meta.json` in one folder.

Words are looked up once: one pass over the text numbers them in order of first appearance, and when all counts are
known the numbers are mapped to ids.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from txl.config.data import DataConfig, VocabKind
from txl.data.bpe import BpeVocabulary
from txl.data.text_blocks import Span, byte_blocks, character_blocks, line_number, word_blocks
from txl.data.vocabulary import (
    CODE_POINTS,
    ByteVocabulary,
    CharVocabulary,
    Vocabulary,
    WordVocabulary,
    code_points,
    split_words,
)
from txl.data.word_ids import WordNumbers
from txl.errors import ConfigError
from txl.files import write_json

log = logging.getLogger(__name__)


CHUNK = 1 << 20  # ids held in memory at a time


Texts = dict[str, list[Span]]  # by split; the spans follow each other


def encode(spans: Texts, data: DataConfig, folder: Path, sources: list, vocabulary: Vocabulary | None = None) -> None:
    """Write the token files of all splits into an existing folder. Raises ConfigError for text that cannot be encoded.

    `sources` is what meta.json says about the files that the spans are of.

    Bytes: the vocabulary is every value in any split. Characters: those of train, and `<unk>` if valid or test have
    others. Words: those of train (data.min_freq, data.max_size), and `<unk>` if some of them were left out, or else
    the `vocabulary` that is given. Byte pairs: always a given one.
    """
    encoders = {
        VocabKind.word: _encode_words,
        VocabKind.byte: _encode_bytes,
        VocabKind.char: _encode_characters,
        VocabKind.bpe: _encode_pairs,
    }
    vocabulary, writers = encoders[data.vocab](spans, data, folder, vocabulary)
    if data.vocab_size not in (None, len(vocabulary)):
        log.warning(
            "data.vocab_size=%d was expected, the text has %d: not the published text, or prepared in another way",
            data.vocab_size,
            len(vocabulary),
        )
    splits = {writer.split: writer.entry() for writer in writers}
    # The same ids and words are the same data, whatever files they came from; where files are shuffled, their number
    # matters too.
    content = [vocabulary.fingerprint, {writer.split: writer.hash.hexdigest() for writer in writers}]
    content += [writer.shards for writer in writers if writer.shards]
    write_json(folder / "vocabulary.json", vocabulary.to_dict())
    meta = {
        "dtype": dtype_for(len(vocabulary)).name,
        "vocab_size": len(vocabulary),
        "vocab_bytes": (folder / "vocabulary.json").stat().st_size,
        "splits": splits,
        "sources": sources,
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    }
    write_json(folder / "meta.json", meta)


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


class TokenWriter:
    """One split's token file: appends ids, counts and hashes them."""

    def __init__(self, folder: Path, split: str, vocabulary: Vocabulary, shards: list[int] | None = None):
        self.split, self.tokens, self.hash = split, 0, hashlib.sha256()
        self.shards = shards  # of sentences: tokens of each file
        self._path, self._dtype = folder / f"{split}.bin", dtype_for(len(vocabulary))

    def write(self, blocks: Iterable[np.ndarray]) -> "TokenWriter":
        with open(self._path, "wb") as file:
            for ids in blocks:
                data = ids.astype(self._dtype, copy=False).tobytes()
                file.write(data)
                self.hash.update(data)
                self.tokens += len(ids)
            file.flush()
            os.fsync(file.fileno())
        return self

    def entry(self) -> dict:
        """What meta.json says of the split."""
        entry = {"tokens": self.tokens, "sha256": self.hash.hexdigest()}
        return entry | {"shards": self.shards} if self.shards else entry


Encoded = tuple[Vocabulary, list[TokenWriter]]


# --------------------------------------------------------------------------- bytes, characters, byte pairs


def _encode_bytes(spans: Texts, data: DataConfig, folder: Path, given: None) -> Encoded:
    seen = np.zeros(256, bool)
    for span in chain.from_iterable(spans.values()):
        for block in byte_blocks(span):
            seen[np.frombuffer(block, np.uint8)] = True
    vocabulary = ByteVocabulary(np.flatnonzero(seen).tolist())
    table = vocabulary.table.astype(np.uint8)  # at most 256 ids
    writers = []
    for split, parts in spans.items():
        ids = (table[np.frombuffer(block, np.uint8)] for span in parts for block in byte_blocks(span))
        writers.append(TokenWriter(folder, split, vocabulary).write(ids))
    return vocabulary, writers


def _encode_characters(spans: Texts, data: DataConfig, folder: Path, given: None) -> Encoded:
    seen = {split: np.zeros(CODE_POINTS, bool) for split in spans}
    for split, parts in spans.items():
        for span in parts:
            for text in character_blocks(span):
                seen[split][code_points(text)] = True
    known = seen["train"]
    unk = any((other & ~known).any() for other in seen.values())
    vocabulary = CharVocabulary(map(chr, np.flatnonzero(known)), unk)
    writers = []
    for split, parts in spans.items():
        ids = (vocabulary.table[code_points(text)] for span in parts for text in character_blocks(span))
        writers.append(TokenWriter(folder, split, vocabulary).write(ids))
    return vocabulary, writers


def _encode_pairs(spans: Texts, data: DataConfig, folder: Path, vocabulary: BpeVocabulary) -> Encoded:
    writers = []
    for split, parts in spans.items():
        ids = (ids for span in parts for ids in vocabulary.encode_span(span))
        writers.append(TokenWriter(folder, split, vocabulary).write(ids))
    return vocabulary, writers


# --------------------------------------------------------------------------- words


@dataclass
class Numbered:
    """A split's words as numbers, in order of first appearance, and what they are."""

    words: list[str]
    file: Path  # the numbers, int32
    sizes: list[int] = field(default_factory=list)  # how many of them each span has

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


def _encode_words(spans: Texts, data: DataConfig, folder: Path, vocabulary: WordVocabulary | None) -> Encoded:
    texts = {split: _number(parts, data, folder / f"{split}.numbers") for split, parts in spans.items()}
    if vocabulary is None:
        counts = texts["train"].counts()
        names = {"eos": data.eos, "unk": data.unk, "sentences": data.sentences}
        vocabulary = WordVocabulary.from_counts(
            counts, data.lower_case, data.min_freq, data.max_size, unk_if_cut=True, **names
        )
    writers = []
    for split, text in texts.items():
        table = _ids_of(text.words, vocabulary, spans[split])
        ids = (table[numbers] for numbers in text.numbers())
        if vocabulary.sentences:  # each has its own end in the text; the first one's other side is missing
            ids = chain([np.array([vocabulary.eos_id])], ids)
        shards = text.sizes if vocabulary.sentences else None
        writers.append(TokenWriter(folder, split, vocabulary, shards).write(ids))
        text.file.unlink()
    return vocabulary, writers


def _number(spans: list[Span], data: DataConfig, file: Path) -> Numbered:
    words, sizes = WordNumbers(data.eos), []
    with open(file, "wb") as out:
        for span in spans:
            began = out.tell()
            for _, text in word_blocks(span):
                words.of(text.lower() if data.lower_case else text).tofile(out)
            sizes.append((out.tell() - began) // np.dtype(np.int32).itemsize)
    return Numbered(words.words, file, sizes)


def _ids_of(words: list[str], vocabulary: WordVocabulary, spans: list[Span]) -> np.ndarray:
    """[len(words)] ids. ConfigError for the first word that has none."""
    unk = -1 if vocabulary.unk_id is None else vocabulary.unk_id
    ids = np.array([vocabulary.ids.get(word, unk) for word in words], np.int32)
    if ids.min() < 0:
        word = words[int(np.argmax(ids < 0))]
        raise ConfigError(
            f"{_place_of(word, spans, vocabulary.lower_case)}: the word {word!r} is not among the "
            f"{len(vocabulary):,} words of data.train, nor is {vocabulary.unk}; data.min_freq=2 makes an "
            f"{vocabulary.unk} of rare words"
        )
    return ids.astype(dtype_for(len(vocabulary)))


def _place_of(word: str, spans: list[Span], lower_case: bool) -> str:
    """The first file, and its line, within the spans, that has the word."""
    for span in spans:
        for offset, text in word_blocks(span):
            for number, line in enumerate(text.split("\n")):
                if word in split_words(line, lower_case):
                    return f"{span}: line {line_number(span.path, offset) + number}"
    raise AssertionError(f"{word!r} is not in {spans}")
