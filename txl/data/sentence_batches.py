"""Training on sentences that have no order, such as those of the One Billion Word benchmark.

Files are read in a random order, the sentences of each in a random order, both anew in every epoch. One file is in
memory at a time.
"""

import bisect
import itertools

import numpy as np

from txl.config.training import TrainConfig
from txl.data.batches import Batch, Stream, TokenStream
from txl.data.corpus import Corpus
from txl.errors import ConfigError


def training_stream(corpus: Corpus, train: TrainConfig, seed: int, columns: range | None = None) -> Stream:
    """What a run trains on; this process holds these columns of every batch. Raises ConfigError where a batch does not
    fit."""
    tokens = corpus.tokens("train")
    lengths = {"batch_size": train.batch_size, "tgt_len": train.tgt_len, "ext_len": train.ext_len, "columns": columns}
    if corpus.shards is not None:
        return SentenceStream(tokens, corpus.shards, corpus.vocab.eos_id, seed, train.roll, train.varlen, **lengths)
    seeds = {"roll_seed": seed if train.roll else None, "varlen_seed": seed if train.varlen else None}
    return TokenStream(tokens, **lengths, **seeds)


class SentenceStream(Stream):
    """Sentences [n] `eos` of several files after one first `eos`, so that each has one on both sides.

    In every epoch each file's sentences are shuffled and cut, as a TokenStream does it, into columns of whole segments
    (the remainder is dropped, other sentences each time); memory goes on from file to file. All of it is a function of
    (seed, epoch, index): any position can be restored, and a column's content does not depend on who holds it.

    shards: tokens of each file. roll, varlen: moreover rotate every column, and draw the segments' lengths. lengths:
    as of TokenStream.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        shards: list[int],
        eos_id: int,
        seed: int,
        roll: bool = False,
        varlen: bool = False,
        **lengths,
    ):
        super().__init__()
        self.seed, self.roll, self.varlen, self.lengths = seed, roll, varlen, lengths
        self._eos_id = eos_id
        ends = list(itertools.accumulate(shards, initial=1))
        assert ends[-1] == len(tokens), (ends[-1], len(tokens))
        # Each with the eos before it: the first one's, or the last of the file before.
        self._shards = [tokens[begin - 1 : end] for begin, end in itertools.pairwise(ends)]
        for i in range(len(shards)):
            self._check_size(i)
        self._order: tuple[int, list[int], list[int]] = 0, [], []  # an epoch, and what _order_in says of it
        self._open: tuple[int, int, TokenStream] | None = None  # an epoch, and a shard as it is read in it

    def _check_size(self, shard: int) -> None:
        batch_size, tgt_len = self.lengths["batch_size"], self.lengths["tgt_len"]
        needed, there = batch_size * (tgt_len + 1), len(self._shards[shard])
        if there < needed:
            raise ConfigError(
                f"batch_size={batch_size} with tgt_len={tgt_len} needs {needed:,} tokens for one segment, file "
                f"{shard + 1} of {len(self._shards)} of the train split has {there:,}; lower batch_size or tgt_len, or "
                "join the files"
            )

    def segments(self, epoch: int) -> int:
        return self._order_in(epoch)[1][-1]

    def batch(self, epoch: int, index: int) -> Batch:
        """Segment `index` of an epoch (from 1)."""
        assert epoch >= 1 and 0 <= index < self.segments(epoch), (epoch, index)
        order, edges = self._order_in(epoch)
        place = bisect.bisect_right(edges, index) - 1
        shard = order[place]
        if self._open is None or self._open[:2] != (epoch, shard):
            self._open = None  # the file before it is not held beside
            tokens = shuffled(self._shards[shard], self._eos_id, random(self._seeds(epoch, shard)))
            self._open = epoch, shard, self._columns(epoch, shard, tokens)
        return self._open[2].batch(1, index - edges[place])

    def _order_in(self, epoch: int) -> tuple[list[int], list[int]]:
        """Of an epoch: shards in the order of reading; where each one's segments begin, and where the last one ends."""
        if self._order[0] != epoch:
            order = random(self._seeds(epoch)).permutation(len(self._shards)).tolist()
            counts = (self._columns(epoch, shard, self._shards[shard]).segments(1) for shard in order)
            self._order = epoch, order, list(itertools.accumulate(counts, initial=0))
        return self._order[1:]

    def _columns(self, epoch: int, shard: int, tokens: np.ndarray) -> TokenStream:
        """A shard's tokens, in whatever order, in segments."""
        if not self.varlen:
            batch_size, tgt_len = self.lengths["batch_size"], self.lengths["tgt_len"]
            rows = len(tokens) // batch_size
            tokens = tokens[: batch_size * (rows - (rows - 1) % tgt_len)]
        roll, varlen = (int(seed) for seed in self._seeds(epoch, shard).generate_state(2))
        seeds = {"roll_seed": roll if self.roll else None, "varlen_seed": varlen if self.varlen else None}
        return TokenStream(tokens, **self.lengths, **seeds)

    def _seeds(self, epoch: int, shard: int = -1) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, epoch, shard + 1])


def random(seeds: np.random.SeedSequence) -> np.random.RandomState:
    """Its numbers stay the same in all versions of NumPy."""
    return np.random.RandomState(np.random.MT19937(seeds))


def shuffled(tokens: np.ndarray, eos_id: int, random: np.random.RandomState) -> np.ndarray:
    """`eos` and sentences that end with it, in another order of the sentences; [tokens], in memory."""
    tokens = np.array(tokens)
    ends = np.flatnonzero(tokens == eos_id) + 1
    starts, lengths = ends[:-1], np.diff(ends)
    order = random.permutation(len(starts))
    starts, lengths = starts[order], lengths[order]
    first = np.cumsum(lengths) - lengths  # where each begins now, without the first eos
    tokens[1:] = tokens[np.repeat(starts - first, lengths) + np.arange(len(tokens) - 1)]
    return tokens
