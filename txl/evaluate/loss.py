"""The loss of a model over a split, with the geometry that it was measured under."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.data.batches import TokenStream
from txl.data.corpus import Corpus
from txl.evaluate.exported_program import FixedShapeProgram
from txl.system.distributed import sum_over_ranks
from txl.system.precision import autocast
from txl.system.timing import synchronize
from txl.system.world import World, columns_of

MISSED_TARGET = 3  # exit code where a target that was asked for is missed


LOSS_TOKENS = 2048  # losses are computed for about so many tokens at once: each time, all softmax weights are read


@dataclass(frozen=True)
class Result:
    """A loss and everything that it depends on."""

    loss: float  # nats per token
    tokens: int
    seconds: float
    geometry: Geometry
    batch_size: int

    @property
    def ppl(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bpc(self) -> float:
        return self.loss / math.log(2)

    def to_dict(self) -> dict:
        return asdict(self) | {"ppl": self.ppl, "bpc": self.bpc, "tokens_per_second": self.tokens / self.seconds}


class LossSum:
    """Nats and tokens, with the hidden states whose losses are still to be computed.

    A short segment would read the softmax of a large vocabulary for a few tokens, so several wait for each other.
    """

    def __init__(self, model, at_least: int):
        self.model, self.at_least = model, at_least
        self.total: Tensor | float = 0.0  # on the device: nobody waits for it
        self.tokens = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, hidden: Tensor, target: Tensor) -> None:
        """hidden [B, T', D], target [B, T]: the last T positions count."""
        hidden = hidden[:, -target.shape[1] :].flatten(0, 1)
        self._waiting.append((hidden, target.flatten()))
        if sum(len(target) for _, target in self._waiting) >= self.at_least:
            self.flush()

    def add_losses(self, loss: Tensor) -> None:
        """Losses of any shape that a program has computed itself."""
        self.total = self.total + loss.sum(dtype=torch.float64)
        self.tokens += loss.numel()

    def flush(self) -> None:
        if not self._waiting:
            return
        hidden, target = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        _, nats = self.model.total_loss(hidden[None], target[None])
        self.total = self.total + nats
        self.tokens += target.numel()


class Progress:
    """Every `interval` segments, `tell` gets what they took and lost, in this process.

    {"segments", "batch", "n_batches", "ms_per_batch", "tokens_per_second", "loss"}; no loss where none was counted.
    `tokens`: of one segment, in all processes.
    """

    def __init__(self, interval: int, tokens: int, tell: Callable[[dict], None]):
        self.interval, self.tokens, self.tell = interval, tokens, tell
        self._segments = self._counted = 0
        self._nats, self._since = 0.0, time.perf_counter()

    def is_due(self) -> bool:
        """A segment is done: are its `interval` full?"""
        self._segments += 1
        return self._segments % self.interval == 0

    def report(self, batch: int, n_batches: int, losses: LossSum) -> None:
        nats, counted = float(losses.total), losses.tokens
        now = time.perf_counter()
        seconds = (now - self._since) / self.interval
        said = {"segments": self._segments, "batch": batch, "n_batches": n_batches, "ms_per_batch": 1000 * seconds}
        said["tokens_per_second"] = self.tokens / seconds
        if counted > self._counted:
            said["loss"] = (nats - self._nats) / (counted - self._counted)
        self._nats, self._counted, self._since = nats, counted, now
        self.tell(said)


def advance(model, input: Tensor, target: Tensor, mems, geometry: Geometry, losses: LossSum | None):
    """One segment in any runtime; its losses are added if they count. Returns the new memories."""
    if isinstance(model, FixedShapeProgram):
        loss, mems = model(input, target, mems)
        if losses is not None:
            losses.add_losses(loss)
    else:
        hidden, mems = model(input, mems, geometry)
        if losses is not None:
            losses.add(hidden, target)
    return mems


@torch.no_grad()
def evaluate(
    model,
    stream: TokenStream,
    geometry: Geometry,
    batch_size: int,
    precision: Arithmetic = Arithmetic.fp32,
    max_steps: int | None = None,
    repeat: int = 1,
    latencies: list[float] | None = None,
    progress: "Progress | None" = None,
) -> Result:
    """Mean loss over the tokens of `stream` that count, summed over all ranks (each holds its columns).

    model: a TransformerXL, or one of its runtimes (inference.py). The memory starts empty and is warmed by the
    stream's uncounted segments. `max_steps`: stop after so many counted segments. `repeat`: read it all so often.
    `latencies`: gets the seconds of every counted segment, losses included. `progress`: is told of every segment.
    Collective.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses = LossSum(model, at_least=LOSS_TOKENS if latencies is None else 1)
    started = time.perf_counter()
    for _ in range(repeat):
        mems, counted = [], 0
        for index in range(stream.n_batches if len(stream.columns) else 0):
            batch = stream.batch(1, index)
            if batch.counted and counted == max_steps:
                break
            counted += batch.counted
            began = time.perf_counter()
            input, target = batch.input.to(device), batch.target.to(device)
            with autocast(precision, device):
                mems = advance(model, input, target, mems, geometry, losses if batch.counted else None)
            if latencies is not None and batch.counted:
                synchronize()
                latencies.append(time.perf_counter() - began)
            if progress is not None and progress.is_due():
                with autocast(precision, device):
                    losses.flush()
                progress.report(index + 1, stream.n_batches, losses)
    with autocast(precision, device):
        losses.flush()
    model.train(training)
    total = torch.tensor([0.0, losses.tokens], dtype=torch.float64, device=device)
    total[0] += losses.total
    nats, tokens = sum_over_ranks(total).tolist()
    return Result(nats / tokens, int(tokens), time.perf_counter() - started, geometry, batch_size)


def evaluation_stream(corpus: Corpus, split: str, geometry: Geometry, batch_size: int, world: World) -> TokenStream:
    """This rank's columns of a split, with the segments before them that warm the memory."""
    return TokenStream(
        corpus.tokens(split),
        batch_size,
        geometry.tgt_len,
        ext_len=geometry.ext_len,
        columns=columns_of(world.rank, world.world_size, batch_size),
        warmup_len=geometry.mem_len,
    )


def loss_over(
    model,
    corpus: Corpus,
    split: str,
    geometry: Geometry,
    batch_size: int,
    precision: Arithmetic,
    world: World,
    max_steps: int | None = None,
) -> Result:
    """`evaluate` on one split of a corpus. Collective."""
    stream = evaluation_stream(corpus, split, geometry, batch_size, world)
    return evaluate(model, stream, geometry, batch_size, precision, max_steps)
