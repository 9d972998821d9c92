"""A split's words as numbers on disk, until the ids of all words are known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from txl.data.text_blocks import Span, word_blocks
from txl.data.word_ids import WordNumbering
from txl.errors import ConfigError

CHUNK = 1 << 20  # numbers in memory at a time
MOST_DIFFERENT = 10_000_000  # words; their table takes about 3 GB


@dataclass
class NumberedText:
    """The words of a split as numbers, in order of first appearance."""

    words: list[str]  # by number
    file: Path  # the numbers, int32
    sizes: list[int] = field(default_factory=list)  # how many numbers each span has

    def numbers(self) -> Iterator[np.ndarray]:
        """Blocks of the numbers."""
        with open(self.file, "rb") as file:
            while len(numbers := np.fromfile(file, np.int32, CHUNK)):
                yield numbers

    def counts(self) -> dict[str, int]:
        """{word: count} in order of first appearance."""
        total = np.zeros(len(self.words), np.int64)
        for numbers in self.numbers():
            total += np.bincount(numbers, minlength=len(total))
        return dict(zip(self.words, total.tolist(), strict=True))


def number_spans(spans: list[Span], file: Path, eos: str, lower_case: bool) -> NumberedText:
    """Number the words of a split and write the numbers to a file.

    Args:
        spans: The text of the split.
        file: File for the numbers.
        eos: The word that ends a line.
        lower_case: Whether the text is lower-cased.
    """
    numbering, sizes = WordNumbering(eos), []
    with open(file, "wb") as out:
        for span in spans:
            began = out.tell()
            for _, text in word_blocks(span):
                numbering.number(text.lower() if lower_case else text).tofile(out)
                check_word_count(len(numbering.words), str(span))
            sizes.append((out.tell() - began) // np.dtype(np.int32).itemsize)
    return NumberedText(numbering.words, file, sizes)


def check_word_count(count: int, source: str) -> None:
    """Raises ConfigError if there are more different words than fit in memory; `source` says where they are."""
    if count > MOST_DIFFERENT:
        raise ConfigError(
            f"{source} has more than {MOST_DIFFERENT:,} different words; use data.vocab=bpe or tokenizer, or char"
        )
