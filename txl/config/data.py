"""The options of `data=`: files, vocabulary, tokenization.

To add a kind of vocabulary: its name and its facts here, its implementation in a module of txl/data/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero, zero_or_more

MOST_WORDS = 2**31 - 1  # token ids are at most 32-bit integers


class VocabKind(Enum):
    """The choices of `data.vocab`: what a token is."""

    word = "word"  # words between white space
    byte = "byte"
    char = "char"  # Unicode characters
    bpe = "bpe"  # byte pairs, as GPT-2's

    @property
    def facts(self) -> VocabFacts:
        """What is known of this kind of vocabulary without its implementation."""
        return VOCAB_FACTS[self]


class Metric(Enum):
    """How a loss is reported."""

    ppl = "ppl"  # perplexity
    bpc = "bpc"  # bits per character (or byte)


@dataclass
class DataConfig:
    """One data set: files, tokenization, vocabulary."""

    name: str = MISSING
    path: str | None = MISSING  # folder that train, valid and test are relative to
    train: str | None = None  # a file, or a pattern of several
    valid: str | None = None
    test: str | None = None
    file: str | None = None  # one file instead of three, which is cut by `split`
    split: list[float] = MISSING  # fractions of train, valid, test
    split_bytes: list[int] = field(default_factory=list)  # enwik8, text8: bytes of train, valid, test
    vocab: VocabKind = MISSING
    lower_case: bool = MISSING
    min_freq: int = zero_or_more()  # leave rarer words out of the vocabulary
    max_size: int | None = above_zero(None)  # keep this number of the most frequent words
    vocab_file: str | None = None  # words: one per line, in the order of their ids; bpe: tokens and ids, JSON
    merges_file: str | None = None  # bpe: pairs in the order of their rank
    eos: str = "<eos>"  # the word that ends a line
    unk: str = "<unk>"  # the word that stands for all words outside of the vocabulary
    sentences: bool = False  # lines have no order: `eos` on both sides, shuffled each epoch, one file after the other
    shards: int | None = above_zero(None)  # number of files that data.train must match
    cutoffs: list[int] = MISSING  # ids at which the adaptive clusters begin
    vocab_size: int | None = above_zero(None, most=MOST_WORDS)  # expected size of the vocabulary, if it is known
    metric: Metric = MISSING
    cache: str = MISSING  # folder of the encoded splits
    max_bytes: int | None = above_zero(None)  # data=stdlib: size of the text, at most


# Options of DataConfig that only some kinds of vocabulary have, and the value with which each does nothing.
VOCAB_OPTIONS = {
    "lower_case": False,
    "min_freq": 0,
    "max_size": None,
    "vocab_file": None,
    "merges_file": None,
    "eos": "<eos>",
    "unk": "<unk>",
    "sentences": False,
}


@dataclass(frozen=True)
class VocabFacts:
    """What the rules and the data sets' files ask about a kind of vocabulary."""

    metric: Metric
    options: tuple[str, ...] = ()  # those of VOCAB_OPTIONS that it has
    needed: tuple[str, ...] = ()  # those of its options that must be given,
    remedy: str = ""  # and where to get them
    of_lines: bool = False  # a text may be cut between lines only


VOCAB_FACTS = {
    VocabKind.word: VocabFacts(Metric.ppl, tuple(key for key in VOCAB_OPTIONS if key != "merges_file"), of_lines=True),
    VocabKind.byte: VocabFacts(Metric.bpc),
    VocabKind.char: VocabFacts(Metric.bpc),
    VocabKind.bpe: VocabFacts(
        Metric.ppl,
        options=("vocab_file", "merges_file"),
        needed=("vocab_file", "merges_file"),
        remedy="GPT-2's two files, or others like them (python -m txl.download gpt2)",
        of_lines=True,
    ),
}
