"""Batches of a token stream, and the position in it.

    stream = TokenStream(corpus.tokens("train"), batch_size=64, tgt_len=192)
    batch = stream.next()                        batch.input, batch.target [B, T]

Shapes: B columns (sequences of a batch), T segment length.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from txl.config.training import VARLEN_EXCESS, VARLEN_SHORTEST
from txl.errors import ConfigError, quoted

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_STD = 5  # standard deviation of drawn segment lengths
HALF_LENGTH_PROBABILITY = 0.05  # of drawing a length around tgt_len / 2 instead of tgt_len


class Batch(NamedTuple):
    """One segment of every column."""

    input: "Tensor"  # [B, T + up to ext_len] int64
    target: "Tensor"  # [B, T] int64: the token after each of the last T inputs
    counted: bool  # False: the segment only fills the memory, its loss is not counted


class BatchStream(ABC):
    """A position in an endless sequence of epochs. A subclass defines the batches of an epoch."""

    def __init__(self) -> None:
        self.epoch, self.index = 1, 0

    @abstractmethod
    def batch(self, epoch: int, index: int) -> Batch:
        """The batch with this index (from 0) of an epoch (from 1)."""

    @abstractmethod
    def segments(self, epoch: int) -> int:
        """The number of batches of an epoch."""

    def next(self) -> Batch:
        """The batch at the current position, which then advances; the next epoch follows an epoch's last batch."""
        batch = self.batch(self.epoch, self.index)
        self.index += 1
        if self.index == self.segments(self.epoch):
            self.epoch, self.index = self.epoch + 1, 0
        return batch

    @property
    def n_batches(self) -> int:
        """The number of batches in the epoch of the latest batch."""
        return self.segments(max(1, self.last_epoch))

    @property
    def last_epoch(self) -> int:
        """The epoch of the latest batch that `next` returned."""
        return self.epoch if self.index else self.epoch - 1

    @property
    def last_index(self) -> int:
        """The index of that batch in its epoch."""
        return (self.index or self.n_batches) - 1

    def state_dict(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position that `state_dict` returned. Raises ValueError if it is none."""
        if any(type(state[name]) is not int or state[name] < 0 for name in ("epoch", "index")):
            raise ValueError(f"the place in the text is {quoted(str(state), 60)}")
        self.epoch, self.index = state["epoch"], state["index"]


class TokenStream(BatchStream):
    """A split cut into `batch_size` parallel columns, which are read in segments of `tgt_len` tokens.

    Tokens that do not fill a row of the columns are dropped.

    Args:
        tokens: [tokens] ids of the split.
        batch_size: Number of columns of all processes together.
        tgt_len: Segment length in tokens.
        ext_len: Number of tokens before the segment that its input begins with (fewer at the start of the stream).
        columns: The columns that this process holds. The content of a column does not depend on it. None: all.
        roll_seed: If given, each epoch e rotates every column to the left by a random number of tokens, drawn from a
            generator with the seed roll_seed + e, in addition to the rotations of earlier epochs.
        varlen_seed: If given, the segment lengths of each epoch are random (`draw_segment_lengths`), drawn from a
            generator whose seed is varlen_seed and the epoch.
        shuffle_len: If given, every epoch reads pieces of this many tokens in an order of its own, drawn from a
            generator whose seed is shuffle_seed and the epoch. Columns are cut after that. Tokens that do not fill a
            piece stay at the end.
        shuffle_seed: Seed of these orders.
        warmup_len: Number of tokens that fill the memory before anything counts. Each column then begins with the end
            of the column before it (the first with the end of the last), in ceil(warmup_len / tgt_len) segments that
            are not counted.
        name: What the tokens are called in an error message, such as "valid split".

    Raises:
        ConfigError: If a length is below 1, or the split does not fill one segment.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        batch_size: int,
        tgt_len: int,
        ext_len: int = 0,
        columns: range | None = None,
        roll_seed: int | None = None,
        varlen_seed: int | None = None,
        shuffle_len: int | None = None,
        shuffle_seed: int = 0,
        warmup_len: int = 0,
        name: str = "text",
    ):
        super().__init__()
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("tgt_len", tgt_len, 1),
            ("ext_len", ext_len, 0),
            ("mem_len", warmup_len, 0),
        ):
            if value < least:
                raise ConfigError(f"{option}={value} must be {least} or more")
        random = not (roll_seed is varlen_seed is shuffle_len is None)
        assert not (warmup_len and random), "warmup_len is for evaluation; roll, varlen and shuffle_len for training"
        check_split_fills_segment(len(tokens), batch_size, tgt_len, name)
        self.batch_size, self.tgt_len, self.ext_len = batch_size, tgt_len, ext_len
        self.roll_seed, self.varlen_seed = roll_seed, varlen_seed
        self.shuffle_len, self.shuffle_seed = shuffle_len, shuffle_seed
        self.columns = range(batch_size) if columns is None else columns
        self.n_rows = len(tokens) // batch_size
        self.n_warmup = -(-warmup_len // tgt_len)
        self._tokens = np.asarray(tokens)[: self.n_rows * batch_size]
        self._starts = np.arange(self.columns.start, self.columns.stop)[:, None] * self.n_rows
        self._shifts = 0, np.zeros(batch_size, np.int64)  # (epoch, the rotation of each column in it)
        self._edges = 0, np.zeros(1, np.int64)  # (epoch, where its segments begin)
        self._order = 0, np.zeros(0, np.int64)  # (epoch, the number of the piece that stands at each place)

    def batch(self, epoch: int, index: int) -> Batch:
        """Segment `index` of an epoch (from 1): a pure function of the seeds, `epoch` and `index`."""
        import torch

        assert epoch >= 1 and index >= 0, (epoch, index)
        start, end = self.edges(epoch)[index : index + 2].tolist()
        begin = max(0, start - self.ext_len)
        rows = np.arange(begin, end + 1) - self.n_warmup * self.tgt_len
        if self.roll_seed is None:
            # Rows below 0 lie at the end of the column before: they fill the memory.
            positions = (self._starts + rows) % len(self._tokens)
        else:
            shift = self._shift(epoch, self.roll_seed)[self.columns.start : self.columns.stop, None]
            positions = self._starts + (rows + shift) % self.n_rows
        if self.shuffle_len is not None:
            positions = self._shuffled(positions, epoch, self.shuffle_len)
        ids = torch.from_numpy(self._tokens[positions].astype(np.int64))  # [B, end + 1 - begin]
        return Batch(ids[:, :-1].contiguous(), ids[:, start - end :].contiguous(), index >= self.n_warmup)

    def segments(self, epoch: int) -> int:
        """The number of segments of an epoch, those that fill the memory included."""
        return len(self.edges(epoch)) - 1

    def edges(self, epoch: int) -> np.ndarray:
        """[segments + 1] the rows of the columns where an epoch's segments begin, and where the last one ends."""
        cached_epoch, edges = self._edges
        if cached_epoch == epoch or cached_epoch and self.varlen_seed is None:
            return edges
        end = self.n_warmup * self.tgt_len + self.n_rows - 1
        if self.varlen_seed is None:
            starts = np.arange(0, end, self.tgt_len)
        else:
            ends = draw_segment_lengths(self.tgt_len, end, [self.varlen_seed, epoch]).cumsum()
            starts = np.append(0, ends[ends < end])
        self._edges = epoch, np.append(starts, end)
        return self._edges[1]

    def _shift(self, epoch: int, roll_seed: int) -> np.ndarray:
        """[batch_size] the rotation to the left that all epochs up to this one add up to, modulo n_rows."""
        import torch

        last_epoch, shift = self._shifts
        if last_epoch > epoch:
            last_epoch, shift = 0, np.zeros_like(shift)
        while last_epoch < epoch:
            last_epoch += 1
            generator = torch.Generator().manual_seed(roll_seed + last_epoch)
            # One draw for each column of all processes: the same numbers whichever columns this process holds.
            draws = [torch.randint(0, self.n_rows, (1,), generator=generator).item() for _ in range(self.batch_size)]
            shift = (shift + np.array(draws)) % self.n_rows
        self._shifts = last_epoch, shift
        return shift

    def _shuffled(self, positions: np.ndarray, epoch: int, shuffle_len: int) -> np.ndarray:
        """Places in the shuffled text of an epoch -> where their tokens stand in the text."""
        cached_epoch, order = self._order
        if cached_epoch != epoch:
            order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(len(self._tokens) // shuffle_len)
            self._order = epoch, order
        if len(order) == 0:
            return positions
        piece, offset = np.divmod(positions, shuffle_len)
        shuffled = order[np.minimum(piece, len(order) - 1)] * shuffle_len + offset
        return np.where(piece < len(order), shuffled, positions)


def check_split_fills_segment(tokens: int, batch_size: int, tgt_len: int, name: str, section: str = "") -> None:
    """Raise ConfigError if a split is shorter than one segment of every column.

    Args:
        tokens: Number of tokens of the split.
        batch_size: Number of columns.
        tgt_len: Segment length in tokens.
        name: What the tokens are called in the message, such as "valid split".
        section: Section of the two keys in the message, such as `train.`.
    """
    needed = batch_size * (tgt_len + 1)
    if tokens >= needed:
        return
    most = tokens // (tgt_len + 1)
    batch, length = f"{section}batch_size", f"{section}tgt_len"
    remedy = f"lower {batch} to at most {most}, or {length}" if most else f"lower {batch} and {length}"
    raise ConfigError(
        f"{batch}={batch_size} with {length}={tgt_len} needs {needed:,} tokens for one segment, the {name} has "
        f"{tokens:,}; {remedy}, or give more text"
    )


def draw_segment_lengths(tgt_len: int, total: int, seed: list[int]) -> np.ndarray:
    """[n] random segment lengths with a sum of at least `total` tokens (Merity et al. 2018, section 5).

    A length is drawn from a normal distribution around tgt_len, or with a probability of 5 % around tgt_len / 2, and
    kept between VARLEN_SHORTEST and tgt_len + VARLEN_EXCESS. A token then has another position in its segment in every
    epoch.
    """
    random = np.random.default_rng(seed)
    count = -(-total // VARLEN_SHORTEST)
    mean = np.where(random.random(count) < HALF_LENGTH_PROBABILITY, tgt_len / 2, tgt_len)
    return np.rint(random.normal(mean, LENGTH_STD)).clip(VARLEN_SHORTEST, tgt_len + VARLEN_EXCESS).astype(np.int64)
