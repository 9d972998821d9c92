"""The options of `data=`: files, vocabulary, tokenization."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class VocabKind(Enum):
    word = "word"
    byte = "byte"
    char = "char"
    bpe = "bpe"  # byte pairs, as GPT-2's


class Metric(Enum):
    ppl = "ppl"
    bpc = "bpc"


@dataclass
class DataConfig:
    """One data set: files, tokenization, vocabulary."""

    name: str = MISSING
    path: str | None = MISSING  # folder that train/valid/test are relative to
    train: str | None = None  # a file, or a pattern of several
    valid: str | None = None
    test: str | None = None
    file: str | None = None  # one file instead of three, cut by `split`
    split: list[float] = MISSING
    split_bytes: list[int] = field(default_factory=list)  # enwik8/text8: sizes of train, valid, test
    vocab: VocabKind = MISSING
    lower_case: bool = MISSING
    min_freq: int = MISSING
    max_size: int | None = None  # keep the most frequent words only
    vocab_file: str | None = None  # words: one per line, in the order of their ids; bpe: tokens and ids, JSON
    merges_file: str | None = None  # bpe: pairs in the order of their rank
    eos: str = "<eos>"  # words: what ends a line,
    unk: str = "<unk>"  # and what stands for those outside the vocabulary, are called
    sentences: bool = False  # words: lines have no order; eos on both sides, shuffled each epoch, a file at a time
    shards: int | None = None  # how many files data.train must match
    cutoffs: list[int] = MISSING  # where the adaptive clusters begin
    vocab_size: int | None = None  # what encoding must yield, where it is known
    metric: Metric = MISSING
    cache: str = MISSING  # folder of the encoded splits
    max_bytes: int | None = None  # size cap of the corpus made from the standard library
