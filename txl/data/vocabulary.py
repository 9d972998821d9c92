"""Vocabularies: text to token ids and back. Four kinds (byte pairs: bpe.py) with one surface:

    len(v)   v.encode(text or bytes) -> int64 array   v.decode(ids) -> text   v.unk_id, v.eos_id (None: has none)
    v.tokens (words, byte values, characters, by id)
    v.to_dict(), vocabulary_from_dict(values)         v.fingerprint (of the content: the same ids for the same text)

Words are what white space separates, and `<eos>` ends every line, also an empty one. Bytes and characters are one
unbroken stream without `<eos>`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from txl.data.bpe import BpeVocabulary
from txl.data.text_blocks import Span, as_text, word_blocks
from txl.errors import ConfigError
from txl.files import sha256_of_json

EOS, UNK = "<eos>", "<unk>"


CODE_POINTS = 0x110000


def split_words(text: str, lower_case: bool, eos: str | None = EOS) -> list[str]:
    """Words between (Unicode) white space, and `eos`, if there is one, for every "\\n"."""
    if lower_case:
        text = text.lower()
    if eos is not None:
        text = text.replace("\n", f" {eos} ")
    return text.split()


class WordVocabulary:
    """From counts: `<eos>` first, then words by falling count, ties in order of first appearance. A file has its own.

    eos, unk: what these two are called. sentences: lines have no order, and `eos` stands on both sides of each: one
    before a text, one between two lines.
    """

    kind = "word"

    def __init__(
        self,
        words: Iterable[str],
        lower_case: bool = False,
        eos: str = EOS,
        unk: str = UNK,
        sentences: bool = False,
    ):
        self.words, self.lower_case = tuple(words), lower_case
        self.eos, self.unk, self.sentences = eos, unk, sentences

    @cached_property
    def ids(self) -> dict[str, int]:
        """By word; made when it is first asked for, which training never does."""
        ids = {word: i for i, word in enumerate(self.words)}
        assert len(ids) == len(self.words), "a word stands twice in the vocabulary"
        return ids

    @cached_property
    def eos_id(self) -> int | None:
        return self.words.index(self.eos) if self.eos in self.words else None

    @cached_property
    def unk_id(self) -> int | None:
        return self.ids.get(self.unk)

    @staticmethod
    def from_counts(
        counts: Mapping[str, int],
        lower_case: bool = False,
        min_freq: int = 0,
        max_size: int | None = None,
        unk_if_cut: bool = False,
        **names: Any,
    ) -> "WordVocabulary":
        """From counts in order of first appearance; `<eos>` need not be among them. names: eos, unk, sentences.

        min_freq: leave rarer words out. max_size: keep so many words besides `<eos>`. The reference adds nothing for
        the words left out, so that text which has them cannot be encoded unless `<unk>` is a word of it.
        `unk_if_cut` appends `<unk>` where words were left out and it is none of those kept; data.py asks for it.
        """
        eos, unk = names.get("eos", EOS), names.get("unk", UNK)
        ordered = sorted((word for word in counts if word != eos), key=counts.__getitem__, reverse=True)
        kept = [word for word in ordered[:max_size] if counts[word] >= min_freq]
        words = [eos, *kept]
        if unk_if_cut and len(kept) < len(ordered) and unk not in kept:
            words.append(unk)
        return WordVocabulary(words, lower_case, **names)

    @staticmethod
    def read(path: Path, lower_case: bool = False, **names: Any) -> "WordVocabulary":
        """From a file with a word, or a word and its count, per line; the ids are the lines' order.

        ConfigError, with the line, for one that is blank, says something else, or repeats a word; and where `eos` or
        `unk` is missing. names: eos, unk, sentences.
        """
        span = Span.whole(path, "data.vocab_file")
        lines: dict[str, int] = {}
        text = "".join(block for _, block in word_blocks(span)).removesuffix("\n")
        for number, line in enumerate(text.split("\n"), start=1):
            word, *rest = line.split() or [""]
            if len(rest) > 1 or not all(count.isdecimal() for count in rest) or not word:
                is_what = f"{line!r} is not a word, or a word and its count" if word else "is blank; remove it"
                raise ConfigError(f"{span}: line {number}{': ' if word else ' '}{is_what}")
            if lines.setdefault(word, number) != number:
                raise ConfigError(f"{span}: line {number}: {word!r} stands in line {lines[word]} already; remove one")
        vocabulary = WordVocabulary(lines, lower_case, **names)
        for key, word, use in (
            ("eos", vocabulary.eos, "ends a line"),
            ("unk", vocabulary.unk, "stands for all other words"),
        ):
            if word not in lines:
                raise ConfigError(f"{span} has no {word}, which {use}; add it, or say what it is called: data.{key}")
        return vocabulary

    def __len__(self) -> int:
        return len(self.words)

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.words

    def encode(self, text: str | bytes, add_eos: bool = True) -> np.ndarray:
        """Ids, [T] int64; `add_eos`: one `<eos>` per line, also where the last lacks its newline (sentences: and one
        before the text).

        A word outside the vocabulary becomes `<unk>`; ConfigError where there is none.
        """
        text = as_text(text).replace("\r\n", "\n").replace("\r", "\n")
        if text and not text.endswith("\n"):
            text += "\n"
        words = split_words(text, self.lower_case, self.eos if add_eos else None)
        if add_eos and self.sentences:
            words.insert(0, self.eos)
        return np.array([self.id_of(word) for word in words], np.int64)

    def id_of(self, word: str) -> int:
        found = self.ids.get(word, self.unk_id)
        if found is None:
            raise ConfigError(
                f"the word {word!r} is not in the vocabulary of {len(self):,} words, which has no {self.unk}; leave it "
                f"out, or train with data.min_freq=2, which makes an {self.unk} of rare words"
            )
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Words with single spaces; `<eos>` as a line's end."""
        text = " ".join("\n" if i == self.eos_id else self.words[i] for i in ids)
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": self.kind, "words": list(self.words), "lower_case": self.lower_case}
        names = {"eos": (self.eos, EOS), "unk": (self.unk, UNK), "sentences": (self.sentences, False)}
        return values | {name: value for name, (value, default) in names.items() if value != default}

    @property
    def fingerprint(self) -> str:
        return sha256_of_json(self.to_dict())


class ByteVocabulary:
    """Byte values, in order; without `<unk>`."""

    kind, eos_id, unk_id = "byte", None, None

    def __init__(self, values: Iterable[int]):
        self.values = np.array(sorted(values), np.uint8)
        self.table = np.full(256, -1)  # byte value -> id, -1: none
        self.table[self.values] = np.arange(len(self.values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self.values.tolist())

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids, [T] int64, of the bytes (of the text in UTF-8). ConfigError for a byte that the vocabulary lacks."""
        data = np.frombuffer(text.encode(errors="surrogateescape") if isinstance(text, str) else text, np.uint8)
        ids = self.table[data]
        if len(ids) and ids.min() < 0:
            value = data[ids < 0][0]
            raise ConfigError(
                f"the byte 0x{value:02x} ({chr(value)!r}) is not in the vocabulary: none of the {len(self)} byte "
                "values of the training corpus is it; leave it out"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """What is not UTF-8 is replaced by a mark."""
        return self.values[_array(ids)].tobytes().decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "values": self.values.tolist()}

    @property
    def fingerprint(self) -> str:
        return sha256_of_json(self.to_dict())


class CharVocabulary:
    """Distinct characters (Unicode code points), in order; `<unk>`, where it has one, comes last."""

    kind, eos_id = "char", None

    def __init__(self, characters: Iterable[str], unk: bool = False):
        self.characters = "".join(sorted(characters))
        self.unk_id = len(self.characters) if unk else None
        self.table = np.full(CODE_POINTS, -1 if self.unk_id is None else self.unk_id, np.int32)  # code point -> id
        self.table[code_points(self.characters)] = np.arange(len(self.characters))

    def __len__(self) -> int:
        return len(self.characters) + (self.unk_id is not None)

    @property
    def tokens(self) -> tuple[str, ...]:
        return (*self.characters, *([] if self.unk_id is None else [UNK]))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids, [T] int64. A character outside the vocabulary becomes `<unk>`; ConfigError where there is none."""
        text = as_text(text)
        ids = self.table[code_points(text)]
        if len(ids) and ids.min() < 0:
            character = text[int(np.argmax(ids < 0))]
            raise ConfigError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the vocabulary of {len(self)} "
                f"characters, which has no {UNK}; leave it out"
            )
        return ids.astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(UNK if i == self.unk_id else self.characters[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters, "unk": self.unk_id is not None}

    @property
    def fingerprint(self) -> str:
        return sha256_of_json(self.to_dict())


Vocabulary = WordVocabulary | ByteVocabulary | CharVocabulary | BpeVocabulary


def vocabulary_from_dict(values: dict[str, Any]) -> Vocabulary:
    """The inverse of `to_dict`."""
    kind, values = values["kind"], {key: value for key, value in values.items() if key != "kind"}
    kinds = {kind.kind: kind for kind in (WordVocabulary, ByteVocabulary, CharVocabulary, BpeVocabulary)}
    return kinds[kind](**values)


def code_points(text: str) -> np.ndarray:
    """[T] uint32"""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _array(ids: Iterable[int]) -> np.ndarray:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
