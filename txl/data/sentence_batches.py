"""Batches of sentences that have no order, such as those of the One Billion Word benchmark.

The files are read in a random order, and the sentences of each file in a random order; both change in every epoch. One
file is in memory at a time.

Shapes: B columns (sequences of a batch), T segment length.
"""

import bisect
import itertools

import numpy as np

from txl.config.training import TrainConfig
from txl.data.batches import Batch, BatchStream, TokenStream
from txl.data.corpus import Corpus
from txl.errors import ConfigError


def training_stream(corpus: Corpus, train: TrainConfig, seed: int, columns: range | None = None) -> BatchStream:
    """The batches that a run trains on: a SentenceStream if the corpus has sentences without order, else a TokenStream.

    Args:
        corpus: The encoded data set; its train split is read.
        train: Batch size, lengths, and what is random: the columns' rotation, lengths, the order of the text.
            Sentences without order are shuffled whatever train.shuffle_len says.
        seed: Seed of everything that is random.
        columns: The columns of every batch that this process holds; None: all.

    Raises:
        ConfigError: If the split does not fill one segment.
    """
    tokens, batch_size, tgt_len, ext_len = corpus.tokens("train"), train.batch_size, train.tgt_len, train.ext_len
    if corpus.shards is not None:
        assert corpus.vocab.eos_id is not None, "only word vocabularies have sentences, and all of them have an eos"
        return SentenceStream(
            tokens,
            corpus.shards,
            corpus.vocab.eos_id,
            seed,
            batch_size,
            tgt_len,
            ext_len=ext_len,
            columns=columns,
            roll=train.roll,
            varlen=train.varlen,
        )
    return TokenStream(
        tokens,
        batch_size,
        tgt_len,
        ext_len=ext_len,
        columns=columns,
        roll_seed=seed if train.roll else None,
        varlen_seed=seed if train.varlen else None,
        shuffle_len=train.shuffle_len,
        shuffle_seed=seed,
        name="train split",
    )


class SentenceStream(BatchStream):
    """Sentences of several files, shuffled in every epoch: one `eos`, then sentences that each end with `eos`.

    In every epoch the sentences of each file are shuffled and cut into columns of whole segments, as a TokenStream does
    it. The tokens that do not fill a segment are dropped, other sentences in each epoch. The memory goes on from one
    file to the next. Every batch is a function of (seed, epoch, index), so any position can be restored, and a column
    does not depend on the process that holds it.

    Args:
        tokens: [tokens] ids of all files, in the order of the files.
        shards: Number of tokens of each file; the first `eos` belongs to none.
        eos_id: Id of `eos`.
        seed: Seed of all random orders.
        batch_size: Number of columns of all processes together.
        tgt_len: Segment length in tokens.
        ext_len: Number of tokens before the segment that its input begins with.
        columns: The columns that this process holds; None: all.
        roll: Also rotate every column by a random number of tokens.
        varlen: Also draw the segment lengths at random.

    Raises:
        ConfigError: If a file does not fill one segment.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        shards: list[int],
        eos_id: int,
        seed: int,
        batch_size: int,
        tgt_len: int,
        ext_len: int = 0,
        columns: range | None = None,
        roll: bool = False,
        varlen: bool = False,
    ):
        super().__init__()
        self.batch_size, self.tgt_len, self.ext_len, self.columns = batch_size, tgt_len, ext_len, columns
        self.seed, self.roll, self.varlen = seed, roll, varlen
        self._eos_id = eos_id
        ends = list(itertools.accumulate(shards, initial=1))
        assert ends[-1] == len(tokens), (ends[-1], len(tokens))
        # Each file with the eos before it: the first one of all, or the last one of the file before.
        self._shards = [tokens[begin - 1 : end] for begin, end in itertools.pairwise(ends)]
        for i in range(len(shards)):
            self._check_file_fills_segment(i)
        self._order: tuple[int, list[int], list[int]] = 0, [], []  # (epoch, and what _order_in returns for it)
        self._open: tuple[int, int, TokenStream] | None = None  # (epoch, file, its shuffled sentences)

    def _check_file_fills_segment(self, shard: int) -> None:
        needed, there = self.batch_size * (self.tgt_len + 1), len(self._shards[shard])
        if there < needed:
            raise ConfigError(
                f"batch_size={self.batch_size} with tgt_len={self.tgt_len} needs {needed:,} tokens for one segment, "
                f"file {shard + 1} of {len(self._shards)} of the train split has {there:,}; lower batch_size or "
                "tgt_len, or join the files"
            )

    def segments(self, epoch: int) -> int:
        """The number of segments of an epoch, of all files together."""
        return self._order_in(epoch)[1][-1]

    def batch(self, epoch: int, index: int) -> Batch:
        """Segment `index` of an epoch (from 1)."""
        assert epoch >= 1 and 0 <= index < self.segments(epoch), (epoch, index)
        order, edges = self._order_in(epoch)
        place = bisect.bisect_right(edges, index) - 1
        shard = order[place]
        if self._open is None or self._open[:2] != (epoch, shard):
            self._open = None  # release the memory of the file before
            tokens = shuffle_sentences(self._shards[shard], self._eos_id, _random_state(self._seeds(epoch, shard)))
            self._open = epoch, shard, self._token_stream(epoch, shard, tokens)
        return self._open[2].batch(1, index - edges[place])

    def _order_in(self, epoch: int) -> tuple[list[int], list[int]]:
        """(the files in the order of reading, the index of each one's first segment and of the end of the last)."""
        if self._order[0] != epoch:
            order = _random_state(self._seeds(epoch)).permutation(len(self._shards)).tolist()
            counts = (self._token_stream(epoch, shard, self._shards[shard]).segments(1) for shard in order)
            self._order = epoch, order, list(itertools.accumulate(counts, initial=0))
        return self._order[1:]

    def _token_stream(self, epoch: int, shard: int, tokens: np.ndarray) -> TokenStream:
        """The tokens of a file, in any order of its sentences, as segments."""
        if not self.varlen:
            rows = len(tokens) // self.batch_size
            tokens = tokens[: self.batch_size * (rows - (rows - 1) % self.tgt_len)]
        roll, varlen = (int(seed) for seed in self._seeds(epoch, shard).generate_state(2))
        return TokenStream(
            tokens,
            self.batch_size,
            self.tgt_len,
            ext_len=self.ext_len,
            columns=self.columns,
            roll_seed=roll if self.roll else None,
            varlen_seed=varlen if self.varlen else None,
        )

    def _seeds(self, epoch: int, shard: int = -1) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, epoch, shard + 1])


def shuffle_sentences(tokens: np.ndarray, eos_id: int, random: np.random.RandomState) -> np.ndarray:
    """[tokens] a copy with the sentences in another order; `tokens` is one `eos`, then sentences that end with it."""
    tokens = np.array(tokens)
    ends = np.flatnonzero(tokens == eos_id) + 1
    starts, lengths = ends[:-1], np.diff(ends)
    order = random.permutation(len(starts))
    starts, lengths = starts[order], lengths[order]
    first = np.cumsum(lengths) - lengths  # where each sentence begins in the copy, not counting the first eos
    tokens[1:] = tokens[np.repeat(starts - first, lengths) + np.arange(len(tokens) - 1)]
    return tokens


def _random_state(seeds: np.random.SeedSequence) -> np.random.RandomState:
    """A generator whose numbers stay the same in all versions of NumPy."""
    return np.random.RandomState(np.random.MT19937(seeds))
