"""Batches of a token stream, and the position in it.

    stream = TokenStream(corpus.tokens("train"), batch_size=64, tgt_len=192)
    batch = stream.next()                        batch.input, batch.target [B, T]

Shapes: B columns (sequences of a batch), T segment length.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from txl.config.training import VARLEN_EXCESS, VARLEN_SHORTEST
from txl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


# --------------------------------------------------------------------------- batches


def check_size(tokens: np.ndarray, batch_size: int, tgt_len: int, section: str = "") -> None:
    """ConfigError where a split does not fill one segment; `section`: of the two keys, such as `train.`."""
    needed = batch_size * (tgt_len + 1)
    if len(tokens) >= needed:
        return
    split = f"{Path(tokens.filename).stem} split" if isinstance(tokens, np.memmap) else "text"
    most = len(tokens) // (tgt_len + 1)
    batch, length = f"{section}batch_size", f"{section}tgt_len"
    remedy = f"lower {batch} to at most {most}, or {length}" if most else f"lower {batch} and {length}"
    raise ConfigError(
        f"{batch}={batch_size} with {length}={tgt_len} needs {needed:,} tokens for one segment, the {split} has "
        f"{len(tokens):,}; {remedy}, or give more text"
    )


class Batch(NamedTuple):
    """One segment of every column."""

    input: "Tensor"  # [B, T + up to ext_len] int64
    target: "Tensor"  # [B, T] int64: the token after each of the last T inputs
    counted: bool  # False: it only warms the memory


class Stream:
    """A position in an endless row of epochs of batches; each kind of stream has its own."""

    batch: Callable[[int, int], Batch]  # (epoch from 1, index)
    segments: Callable[[int], int]  # (epoch): how many batches it has

    def __init__(self):
        self.epoch, self.index = 1, 0

    def next(self) -> Batch:
        """The batch at the current position, which then advances; after the last one the next epoch begins."""
        batch = self.batch(self.epoch, self.index)
        self.index += 1
        if self.index == self.segments(self.epoch):
            self.epoch, self.index = self.epoch + 1, 0
        return batch

    @property
    def n_batches(self) -> int:
        """Of the epoch of the latest batch."""
        return self.segments(max(1, self.last_epoch))

    @property
    def last_epoch(self) -> int:
        """The epoch that the latest batch of `next` was in."""
        return self.epoch if self.index else self.epoch - 1

    @property
    def last_index(self) -> int:
        """The place of that batch in its epoch."""
        return (self.index or self.n_batches) - 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]


class TokenStream(Stream):
    """A split cut into `batch_size` parallel columns (the remainder dropped), read in segments of `tgt_len`.

    columns: which of them this process holds; what they contain does not depend on it.
    ext_len: tokens before the segment that its input begins with (fewer at the stream's start).
    varlen_seed: the lengths of the segments of each epoch are drawn (`drawn_lengths`) from a generator seeded with
    varlen_seed and the epoch, instead of all being `tgt_len`.
    warmup_len: memory to fill before anything counts: each column begins with the end of the one before it (the first
    with the end of the last), in ceil(warmup_len / tgt_len) segments that are not counted.
    roll_seed: each epoch e rotates every column to the left by a random amount, drawn from a generator seeded with
    roll_seed + e, on top of what earlier epochs did.

    Raises ConfigError for lengths below 1 and for a split that does not fill one segment.
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
        warmup_len: int = 0,
    ):
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("tgt_len", tgt_len, 1),
            ("ext_len", ext_len, 0),
            ("mem_len", warmup_len, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}={value} must be {least} or more")
        random = roll_seed is not None or varlen_seed is not None
        assert not (warmup_len and random), "warming is for evaluation, chance for training"
        check_size(tokens, batch_size, tgt_len)
        self.batch_size, self.tgt_len, self.ext_len = batch_size, tgt_len, ext_len
        self.roll_seed, self.varlen_seed = roll_seed, varlen_seed
        self.columns = range(batch_size) if columns is None else columns
        self.n_rows = len(tokens) // batch_size
        self.n_warmup = -(-warmup_len // tgt_len)
        self._tokens = np.asarray(tokens)[: self.n_rows * batch_size]
        self._starts = np.arange(self.columns.start, self.columns.stop)[:, None] * self.n_rows
        self._shifts = 0, np.zeros(batch_size, np.int64)  # an epoch, and by how much its columns are rotated
        self._edges = 0, np.zeros(1, np.int64)  # an epoch, and where its segments begin

    def batch(self, epoch: int, index: int) -> Batch:
        """Segment `index` of an epoch (from 1): a pure function of (roll_seed, varlen_seed, epoch, index)."""
        import torch

        assert epoch >= 1 and index >= 0, (epoch, index)
        start, end = self.edges(epoch)[index : index + 2].tolist()
        begin = max(0, start - self.ext_len)
        rows = np.arange(begin, end + 1) - self.n_warmup * self.tgt_len
        if self.roll_seed is None:
            # Before its first row a column goes on backwards into the one before it: what warms the memory.
            positions = (self._starts + rows) % len(self._tokens)
        else:
            shift = self._shift(epoch)[self.columns.start : self.columns.stop, None]
            positions = self._starts + (rows + shift) % self.n_rows
        ids = torch.from_numpy(self._tokens[positions].astype(np.int64))  # [B, begin ... end]
        return Batch(ids[:, :-1].contiguous(), ids[:, start - end :].contiguous(), index >= self.n_warmup)

    def segments(self, epoch: int) -> int:
        return len(self.edges(epoch)) - 1

    def edges(self, epoch: int) -> np.ndarray:
        """Where the segments of an epoch begin, in rows of its columns, and where the last one ends: [segments + 1]."""
        done, edges = self._edges
        if done == epoch or done and self.varlen_seed is None:
            return edges
        end = self.n_warmup * self.tgt_len + self.n_rows - 1
        if self.varlen_seed is None:
            starts = np.arange(0, end, self.tgt_len)
        else:
            ends = drawn_lengths(self.tgt_len, end, [self.varlen_seed, epoch]).cumsum()
            starts = np.append(0, ends[ends < end])
        self._edges = epoch, np.append(starts, end)
        return self._edges[1]

    def _shift(self, epoch: int) -> np.ndarray:
        """[batch_size] rotation to the left, all epochs up to this one together, modulo n_rows."""
        import torch

        done, shift = self._shifts
        if done > epoch:
            done, shift = 0, np.zeros_like(shift)
        while done < epoch:
            done += 1
            generator = torch.Generator().manual_seed(self.roll_seed + done)
            # One draw per column, of all columns: the same whichever of them this process holds.
            draws = [torch.randint(0, self.n_rows, (1,), generator=generator).item() for _ in range(self.batch_size)]
            shift = (shift + np.array(draws)) % self.n_rows
        self._shifts = done, shift
        return shift


SPREAD = 5  # standard deviation of drawn lengths


HALVED = 0.05  # so often a length is drawn around half of tgt_len


def drawn_lengths(tgt_len: int, total: int, seed: list[int]) -> np.ndarray:
    """Lengths of segments that together have `total` tokens or more (Merity et al. 2018, section 5).

    Normal around tgt_len, now and then around its half, between VARLEN_SHORTEST and tgt_len + VARLEN_EXCESS: a
    token then stands at another place of its segment in every epoch.
    """
    random = np.random.default_rng(seed)
    count = -(-total // VARLEN_SHORTEST)
    middle = np.where(random.random(count) < HALVED, tgt_len / 2, tgt_len)
    return np.rint(random.normal(middle, SPREAD)).clip(VARLEN_SHORTEST, tgt_len + VARLEN_EXCESS).astype(np.int64)
