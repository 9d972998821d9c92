"""The options of `data=`: files, vocabulary, tokenization.

To add a source of token ids or a kind of vocabulary: its name and its facts here, its implementation in a module of
txl/data/ (token_source.py and vocabulary.py say how the module is found).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from txl.config.bounds import above_zero, added, zero_or_more

MOST_UNKNOWN = 0.2  # share of unknown tokens in a split above which there is a warning
MOST_WORDS = 2**31 - 1  # token ids are at most 32-bit integers


class SourceName(Enum):
    """The choices of `data.source`: where token ids come from."""

    text = "text"  # text files, which are encoded on first use
    ids = "ids"  # token ids that exist already, as .npy arrays or raw integers

    @property
    def facts(self) -> SourceFacts:
        """What is known of this source without its implementation."""
        return SOURCE_FACTS[self]


class VocabKind(Enum):
    """The choices of `data.vocab`: what a token is."""

    word = "word"  # words between white space
    byte = "byte"
    char = "char"  # Unicode characters
    bpe = "bpe"  # byte pairs, as GPT-2's
    tokenizer = "tokenizer"  # what a tokenizer.json says
    ids = "ids"  # numbers, for ids that another program made

    @property
    def facts(self) -> VocabFacts:
        """What is known of this kind of vocabulary without its implementation."""
        return VOCAB_FACTS[self]


class TypedText(Enum):
    """The choices of `data.typed_text`: how words are found in text that a person types."""

    moses = "moses"  # Moses' rules for English separate punctuation, as WikiText's preparation did
    whitespace = "whitespace"  # words are typed as the data set has them, with white space between them


class Metric(Enum):
    """How a loss is reported."""

    ppl = "ppl"  # perplexity
    bpc = "bpc"  # bits per character (or byte)


class IdType(Enum):
    """The choices of `data.dtype`: the integers of a file of ids that has no header."""

    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"
    int32 = "int32"
    int64 = "int64"


@dataclass
class DataConfig:
    """One data set: files, tokenization, vocabulary."""

    name: str = MISSING  # part of the run folder's name
    source: SourceName = added(SourceName.text)  # where token ids come from
    path: str | None = MISSING  # folder that train, valid and test are relative to
    train: str | None = None  # a file, or a pattern of several
    valid: str | None = None  # as train
    test: str | None = None  # as train; null: no test
    file: str | None = None  # one file instead of three, which is cut by `split`
    dtype: IdType | None = added(None)  # ids: the integers of a file without a header
    split: list[float] = MISSING  # fractions of train, valid, test
    split_bytes: list[int] = field(default_factory=list)  # enwik8, text8: bytes of train, valid, test
    vocab: VocabKind = MISSING  # what a token is
    lower_case: bool = MISSING  # words: lower case everywhere
    min_freq: int = zero_or_more()  # leave rarer words out of the vocabulary
    max_size: int | None = above_zero(None)  # keep this number of the most frequent words
    vocab_file: str | None = None  # words: one per line, in the order of their ids; bpe: tokens and ids, JSON
    merges_file: str | None = None  # bpe: pairs in the order of their rank
    tokenizer_file: str | None = added(None)  # tokenizer: a tokenizer.json
    eos: str = "<eos>"  # the word that ends a line; the token that ends a text file
    unk: str = "<unk>"  # the word that stands for all words outside of the vocabulary
    sentences: bool = False  # lines have no order: `eos` on both sides, shuffled each epoch, one file after the other
    shards: int | None = above_zero(None)  # number of files that data.train must match
    typed_text: TypedText = TypedText.moses  # words: how prompts and texts to score become words
    cutoffs: list[int] = MISSING  # ids at which the adaptive clusters begin
    vocab_size: int | None = above_zero(None, most=MOST_WORDS)  # expected size of the vocabulary, if it is known
    metric: Metric = MISSING  # how a loss is reported
    cache: str = MISSING  # folder of the encoded splits
    max_bytes: int | None = above_zero(None)  # data=stdlib: size of the text, at most


SPLITS = ("train", "valid", "test")
FILE_OPTIONS = (*SPLITS, "file")  # the options that name files of the data set
VOCAB_FILE_OPTIONS = ("vocab_file", "merges_file", "tokenizer_file")  # the options that name files of the vocabulary

# Options of DataConfig that only some sources have, and the value with which each does nothing.
SOURCE_OPTIONS: dict[str, Any] = {
    "split_bytes": [],
    "sentences": False,
    "shards": None,
    "max_bytes": None,
    "min_freq": 0,
    "max_size": None,
    "dtype": None,
}


@dataclass(frozen=True)
class SourceFacts:
    """What the rules ask about a source of token ids."""

    options: tuple[str, ...]  # those of SOURCE_OPTIONS that it has
    example: str  # how its files are given


SOURCE_FACTS = {
    SourceName.text: SourceFacts(
        options=("split_bytes", "sentences", "shards", "max_bytes", "min_freq", "max_size"),
        example="data.train=a.txt data.valid=b.txt data.test=c.txt, or data.file=a.txt data.split=[0.9,0.05,0.05]",
    ),
    SourceName.ids: SourceFacts(
        options=("dtype",),
        example="data.train=a.npy data.valid=b.npy data.test=c.npy, or data.file=a.npy data.split=[0.9,0.05,0.05]",
    ),
}


# Options of DataConfig that only some kinds of vocabulary have, and the value with which each does nothing.
VOCAB_OPTIONS: dict[str, Any] = {
    "lower_case": False,
    "min_freq": 0,
    "max_size": None,
    "vocab_file": None,
    "merges_file": None,
    "tokenizer_file": None,
    "eos": "<eos>",
    "unk": "<unk>",
    "sentences": False,
}


class CutAt(Enum):
    """Where a file may be cut into splits."""

    byte = "byte"
    character = "character"  # data.split then holds fractions of the characters, otherwise of the bytes
    line = "line"


@dataclass(frozen=True)
class VocabFacts:
    """What the rules and the data sets' files ask about a kind of vocabulary."""

    metric: Metric
    cut_at: CutAt
    from_text: bool = False  # it is made of the text, unless options name its files
    splits_typed_text: bool = False  # data.typed_text has a meaning for it
    sources: tuple[SourceName, ...] = (SourceName.text,)  # the sources whose ids it can belong to
    options: tuple[str, ...] = ()  # those of VOCAB_OPTIONS that it has
    needed: tuple[str, ...] = ()  # those of its options that must be given,
    remedy: str = ""  # and where to get them


VOCAB_FACTS = {
    VocabKind.word: VocabFacts(
        Metric.ppl,
        CutAt.line,
        from_text=True,
        splits_typed_text=True,
        sources=(SourceName.text, SourceName.ids),
        options=("lower_case", "min_freq", "max_size", "vocab_file", "eos", "unk", "sentences"),
    ),
    VocabKind.byte: VocabFacts(Metric.bpc, CutAt.byte, from_text=True),
    VocabKind.char: VocabFacts(Metric.bpc, CutAt.character, from_text=True),
    VocabKind.bpe: VocabFacts(
        Metric.ppl,
        CutAt.line,
        sources=(SourceName.text, SourceName.ids),
        options=("vocab_file", "merges_file"),
        needed=("vocab_file", "merges_file"),
        remedy="GPT-2's two files, or others like them (txl download gpt2)",
    ),
    VocabKind.tokenizer: VocabFacts(
        Metric.ppl,
        CutAt.line,
        sources=(SourceName.text, SourceName.ids),
        options=("tokenizer_file", "eos"),
        needed=("tokenizer_file",),
        remedy="a tokenizer.json, as the library tokenizers and the models on Hugging Face's hub have it",
    ),
    VocabKind.ids: VocabFacts(Metric.ppl, CutAt.line, sources=(SourceName.ids,), options=("vocab_file",)),
}


def describe_unknown(shares: Mapping[str, float]) -> str:
    """The share of unknown tokens by split in words, such as `train 5.7 %, valid 10.4 %`; empty without splits."""
    return ", ".join(f"{split} {100 * share:.1f} %" for split, share in shares.items())
