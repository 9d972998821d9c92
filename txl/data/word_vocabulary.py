"""Words as tokens: what white space separates. `<eos>` ends every line, also an empty one."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from txl.config.data import DataConfig, TypedText
from txl.data.moses import moses_detokenize, moses_tokenize
from txl.data.numbered_words import NumberedText, check_word_count, number_spans
from txl.data.text_blocks import Span, SplitSpans, decode_utf8, line_number, word_blocks
from txl.data.token_files import TokenFile, token_dtype
from txl.data.vocabulary import EOS, UNK, Vocabulary
from txl.errors import ConfigError, quoted


class WordVocabulary(Vocabulary):
    """Distinct words; their order is that of the ids.

    Args:
        words: The words by id.
        lower_case: Whether text is lower-cased before it is looked up.
        eos: The word that ends a line.
        unk: The word for everything outside the vocabulary.
        sentences: Lines have no order, and `eos` stands on both sides of each line: one before a text, and one between
            two lines.
    """

    kind = "word"
    noun = "words"

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
        """{word: id}; built on first use, and training never uses it."""
        ids = {word: i for i, word in enumerate(self.words)}
        assert len(ids) == len(self.words), "the vocabulary contains a word twice"
        return ids

    @cached_property
    def eos_id(self) -> int | None:
        """The id of `eos`."""
        return self.words.index(self.eos) if self.eos in self.words else None

    @cached_property
    def unk_id(self) -> int | None:
        """The id of `unk`."""
        return self.ids.get(self.unk)

    @property
    def joins_words(self) -> bool:
        """Moses' rules join words and punctuation."""
        return self.typed_text is TypedText.moses

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        lower_case: bool = False,
        min_freq: int = 0,
        max_size: int | None = None,
        unk_if_cut: bool = False,
        **names: Any,
    ) -> Self:
        """`eos` first, then the words by falling count; words with the same count in order of first appearance.

        The reference adds no `unk` for words that are left out; text with them can then be encoded only if the text
        that was counted contains `unk` as a word.

        Args:
            counts: {word: count} in order of first appearance; `eos` need not be among them.
            lower_case: Whether text is lower-cased before it is looked up.
            min_freq: Leave out words with a smaller count.
            max_size: Keep only so many of the most frequent words besides `eos`; None: all.
            unk_if_cut: Append `unk` if words were left out and `unk` is not one of those kept.
            names: The parameters eos, unk and sentences of the class.
        """
        eos, unk = names.get("eos", EOS), names.get("unk", UNK)
        ordered = sorted((word for word in counts if word != eos), key=counts.__getitem__, reverse=True)
        kept = [word for word in ordered[:max_size] if counts[word] >= min_freq]
        words = [eos, *kept]
        if unk_if_cut and len(kept) < len(ordered) and unk not in kept:
            words.append(unk)
        return cls(words, lower_case, **names)

    @classmethod
    def from_file(cls, path: Path, lower_case: bool = False, **names: Any) -> Self:
        """From a file with a word, or a word and its count, per line; the order of the lines is that of the ids.

        Args:
            path: The file (data.vocab_file).
            lower_case: Whether text is lower-cased before it is looked up.
            names: The parameters eos, unk and sentences of the class.

        Raises:
            ConfigError: With the line, if it is blank, has other content, or repeats a word; and if `eos` or `unk` is
                missing.
        """
        span = Span.whole(path, "data.vocab_file")
        lines: dict[str, int] = {}
        for number, line in enumerate(_lines(span), start=1):
            word, *rest = line.split() or [""]
            if len(rest) > 1 or not all(count.isdecimal() for count in rest) or not word:
                problem = f"{quoted(line)} is not a word, or a word and its count" if word else "is blank; remove it"
                raise ConfigError(f"{span}: line {number}{': ' if word else ' '}{problem}")
            if lines.setdefault(word, number) != number:
                raise ConfigError(f"{span}: line {number}: {quoted(word)} is in line {lines[word]} already; remove one")
            check_word_count(len(lines), str(span))
        vocabulary = cls(lines, lower_case, **names)
        for key, word, use in (
            ("eos", vocabulary.eos, "ends a line"),
            ("unk", vocabulary.unk, "stands for all other words"),
        ):
            if word not in lines:
                raise ConfigError(f"{span} has no {word}, which {use}; add it, or say what it is called: data.{key}")
        return vocabulary

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self | None:
        """The words of data.vocab_file; None: they are made of the text."""
        if "vocab_file" not in files:
            return None
        return cls.from_file(files["vocab_file"], data.lower_case, **_names(data))

    def __len__(self) -> int:
        return len(self.words)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The words."""
        return self.words

    def encode(self, text: str | bytes, add_eos: bool = True) -> np.ndarray:
        """[T] int64 ids. An unknown word becomes `unk`; raises ConfigError if there is none.

        `add_eos`: every line ends with `eos`, also a last one without a newline; with sentences, one `eos` comes before
        the text.
        """
        text = decode_utf8(text).replace("\r\n", "\n").replace("\r", "\n")
        if text and not text.endswith("\n"):
            text += "\n"
        words = split_words(text, self.lower_case, self.eos if add_eos else None)
        if add_eos and self.sentences:
            words.insert(0, self.eos)
        return np.array([self.id_of(word) for word in words], np.int64)

    def id_of(self, word: str) -> int:
        """The id of a word, or that of `unk`. Raises ConfigError if there is none."""
        found = self.ids.get(word, self.unk_id)
        if found is None:
            raise ConfigError(
                f"the word {quoted(word)} is not in the vocabulary of {len(self):,} words, which has no {self.unk}; "
                f"leave it out, or train with data.min_freq=2, which makes an {self.unk} of rare words"
            )
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The words with single spaces between them; `eos` is the end of a line."""
        text = " ".join("\n" if i == self.eos_id else self.words[i] for i in ids)
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def encode_typed(self, text: str, end_line: bool) -> np.ndarray:
        """[T] int64 ids of typed text. With data.typed_text=moses, Moses' rules separate it into words as in WikiText.

        `end_line`: the last line ends with `eos`, as the others do. Sentences begin with `eos`.
        """
        typed = text.rstrip("\n").split("\n")
        if self.typed_text is TypedText.moses:
            typed = [moses_tokenize(line, self.ids) for line in typed]
        lines = [self.encode(line, add_eos=False) for line in typed]
        ends = len(lines) if end_line else len(lines) - 1
        eos = np.array([] if self.eos_id is None else [self.eos_id], np.int64)  # an imported model may have none
        parts = [part for i, line in enumerate(lines) for part in ((line, eos) if i < ends else (line,))]
        return np.concatenate([eos, *parts] if self.sentences else parts)

    def to_typed_text(self, ids: list[int]) -> str:
        """The text; with data.typed_text=moses, without the spaces that tokenization puts around punctuation."""
        if self.sentences and ids and ids[0] == self.eos_id:  # it comes before the first sentence
            ids = ids[1:]
        if self.typed_text is TypedText.whitespace:
            return self.decode(ids)
        return "\n".join(moses_detokenize(line.split()) for line in self.decode(ids).split("\n"))

    def can_forget(self, ids: list[int]) -> bool:
        """Whether all quotes are closed; Moses' rules would take a closing one for an opening one otherwise."""
        if self.typed_text is TypedText.whitespace:
            return True
        words = self.decode(ids).split()
        return not any(words.count(quote) % 2 for quote in ('"', "'"))

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON; eos, unk and sentences only if they are not the default."""
        values = {"kind": self.kind, "words": list(self.words), "lower_case": self.lower_case}
        names = {"eos": (self.eos, EOS), "unk": (self.unk, UNK), "sentences": (self.sentences, False)}
        return values | {name: value for name, (value, default) in names.items() if value != default}

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: Vocabulary | None
    ) -> tuple[Vocabulary, list[TokenFile]]:
        """Encode all splits (see `Vocabulary.encode_splits`).

        A vocabulary that is made of the text has the words of train. If data.min_freq or data.max_size is given, it has
        `unk` for the words that they leave out, and for those that only valid or test have. The text is read once: its
        words are numbered in order of first appearance, and when all counts are known, the numbers are mapped to ids.
        """
        texts = {
            split: number_spans(parts, folder / f"{split}.numbers", data.eos, data.lower_case)
            for split, parts in spans.items()
        }
        if given is None:
            vocabulary = cls._of_text(texts, data)
        else:
            assert isinstance(given, cls), given.kind
            vocabulary = given
        files = []
        for split, text in texts.items():
            table = vocabulary._ids_by_number(text, spans[split])
            ids: Iterable[np.ndarray] = (table[numbers] for numbers in text.numbers())
            if vocabulary.sentences:  # every line has an eos at its end; the first line needs one before it
                ids = chain([np.array([vocabulary.eos_id])], ids)
            shards = text.sizes if vocabulary.sentences else None
            files.append(TokenFile(folder, split, len(vocabulary), vocabulary.unk_id, shards).write(ids))
            text.file.unlink()
        return vocabulary, files

    @classmethod
    def _of_text(cls, texts: dict[str, NumberedText], data: DataConfig) -> Self:
        counts, limits = texts["train"].counts(), (data.min_freq, data.max_size)
        vocabulary = cls.from_counts(counts, data.lower_case, *limits, unk_if_cut=True, **_names(data))
        others = any(word not in vocabulary.ids for text in texts.values() for word in text.words)
        if vocabulary.unk_id is None and others and any(limits):
            return cls([*vocabulary.words, vocabulary.unk], data.lower_case, **_names(data))
        return vocabulary

    def _ids_by_number(self, text: NumberedText, spans: list[Span]) -> np.ndarray:
        """[distinct words of the text] ids. Raises ConfigError, with file and line, for the first word without one."""
        unk = -1 if self.unk_id is None else self.unk_id
        ids = np.array([self.ids.get(word, unk) for word in text.words], np.int32)
        if ids.min() < 0:
            word = text.words[int(np.argmax(ids < 0))]
            raise ConfigError(
                f"{_find_word(word, spans, self.lower_case)}: the word {quoted(word)} is not among the {len(self):,} "
                f"words of data.train, nor is {self.unk}; data.min_freq=2 makes an {self.unk} of rare words"
            )
        return ids.astype(token_dtype(len(self)))


def split_words(text: str, lower_case: bool, eos: str | None = EOS) -> list[str]:
    """The words between (Unicode) white space, and `eos`, unless it is None, for every "\\n"."""
    if lower_case:
        text = text.lower()
    if eos is not None:
        text = text.replace("\n", f" {eos} ")
    return text.split()


def _lines(span: Span) -> Iterator[str]:
    """The lines of a file, without their ends; the last one need not have one."""
    rest = ""
    for _, text in word_blocks(span):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    if rest:
        yield rest


def _names(data: DataConfig) -> dict[str, Any]:
    return {"eos": data.eos, "unk": data.unk, "sentences": data.sentences}


def _find_word(word: str, spans: list[Span], lower_case: bool) -> str:
    """The first file within the spans that contains the word, and its line."""
    for span in spans:
        for offset, text in word_blocks(span):
            for number, line in enumerate(text.split("\n")):
                if word in split_words(line, lower_case):
                    return f"{span}: line {line_number(span.path, offset) + number}"
    raise AssertionError(f"{word!r} is not in {spans}")
