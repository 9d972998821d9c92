"""The loss of a model over a split, with the lengths that it was measured under.

Shapes: B batch, T segment, T' segment with extended context, D model width.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.data.batches import TokenStream
from txl.data.corpus import Corpus
from txl.evaluate.exported_program import FixedShapeProgram
from txl.evaluate.runtimes import Memory, RunnableModel
from txl.system.console import CountBar
from txl.system.distributed import sum_over_ranks
from txl.system.hang_watch import note_progress
from txl.system.precision import autocast
from txl.system.timing import synchronize
from txl.system.world import World, columns_of
from txl.tracking.scores import LossScores

LOSS_TOKENS = 2048  # losses are computed for about this many tokens at once, because each time reads the whole softmax


@dataclass(frozen=True)
class EvaluationResult(LossScores):
    """A loss and everything that it depends on."""

    loss: float  # nats per token
    tokens: int
    seconds: float
    geometry: Geometry
    batch_size: int

    def measured(self) -> dict[str, Any]:
        """The fields, as the tracker takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"ppl": self.ppl, "bpc": self.bpc, "tokens_per_second": self.tokens / self.seconds}


class LossSum:
    """Adds up nats and tokens. Hidden states wait until the losses of many can be computed at once.

    Each computation reads the weights of the whole softmax, which short segments would do for a few tokens.
    """

    def __init__(self, model: RunnableModel, at_least: int):
        """`at_least`: tokens that wait before their losses are computed; 1 computes every segment's at once."""
        self.model, self.at_least = model, at_least
        self.total: Tensor | float = 0.0  # nats, on the device, so that the host does not wait for it
        self.tokens = 0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, hidden: Tensor, target: Tensor, host_target: Tensor | None = None) -> None:
        """Add hidden states [B, T', D] of a segment and its targets [B, T]; the last T positions count.

        `host_target`: the targets on the host. With those of a GPU alone the host waits until it has counted them.
        """
        hidden = hidden[:, -target.shape[1] :].flatten(0, 1)
        self._waiting.append((hidden, target.flatten(), (target if host_target is None else host_target).flatten()))
        if sum(len(target) for _, target, _ in self._waiting) >= self.at_least:
            self.flush()

    def add_losses(self, loss: Tensor) -> None:
        """Add losses of any shape that a program has computed itself."""
        self.total = self.total + loss.sum(dtype=torch.float64)
        self.tokens += loss.numel()

    def flush(self) -> None:
        """Compute the losses that wait."""
        if not self._waiting:
            return
        assert not isinstance(self.model, FixedShapeProgram), "a program computes its losses itself"
        hidden, target, host_target = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        tokens = self.model.softmax.clusters.sort_tokens(host_target).to(target.device)
        _, nats = self.model.total_loss(hidden[None], target[None], tokens=tokens)
        self.total = self.total + nats
        self.tokens += target.numel()

    def sum_over_ranks(self, device: torch.device) -> tuple[float, int]:
        """Nats and tokens of all ranks together. Collective; `flush` comes before."""
        sums = torch.tensor([0.0, self.tokens], dtype=torch.float64, device=device)
        sums[0] += self.total
        nats, tokens = sum_over_ranks(sums).tolist()
        return nats, int(tokens)


class SegmentProgress:
    """Reports on an evaluation after every `interval` segments, and shows every segment on a bar.

    `report` calls `tell` with {"segments", "batch", "n_batches", "ms_per_batch", "tokens_per_second", "loss"} of this
    process; the loss is left out if none of the segments counted.
    """

    def __init__(self, interval: int | None, tokens: int, tell: Callable[[dict[str, Any]], None], bar: CountBar):
        """Prepare to report.

        Args:
            interval: segments between two reports; None for no report.
            tokens: of one segment, in all processes together.
            tell: gets the values of a report.
            bar: shows the number of segments.
        """
        self.interval, self.tokens, self.tell, self.bar = interval or 0, tokens, tell, bar
        self._segments = self._counted = 0
        self._nats, self._since = 0.0, time.perf_counter()

    def is_due(self) -> bool:
        """Count one more segment; returns whether a report is due."""
        self._segments += 1
        self.bar.show(self._segments)
        return self.interval > 0 and self._segments % self.interval == 0

    def report(self, batch: int, n_batches: int, losses: LossSum) -> None:
        """Report on the segments since the last report; `batch` of `n_batches` are done."""
        nats, counted = float(losses.total), losses.tokens
        now = time.perf_counter()
        seconds = (now - self._since) / self.interval
        values = {"segments": self._segments, "batch": batch, "n_batches": n_batches, "ms_per_batch": 1000 * seconds}
        values["tokens_per_second"] = self.tokens / seconds
        if counted > self._counted:
            values["loss"] = (nats - self._nats) / (counted - self._counted)
        self._nats, self._counted, self._since = nats, counted, now
        self.tell(values)


def run_segment(
    model: RunnableModel,
    input: Tensor,
    target: Tensor,
    memory: Memory,
    geometry: Geometry,
    losses: LossSum | None,
    host_target: Tensor | None = None,
) -> Memory:
    """Read one segment in any runtime.

    Args:
        model: a model in one of its runtimes.
        input: token ids [B, T'].
        target: the tokens to predict [B, T].
        memory: what the last call returned, or an empty list where a text starts.
        geometry: the lengths to read with.
        losses: the segment's losses are added to it; None if the segment only fills the memory.
        host_target: the targets on the host, if `target` is on a GPU.

    Returns:
        The memory for the next segment.
    """
    if isinstance(model, FixedShapeProgram):
        loss, memory = model(input, target, memory)
        if losses is not None:
            losses.add_losses(loss)
    else:
        hidden, memory = model(input, memory, geometry)
        if losses is not None:
            losses.add(hidden, target, host_target)
    return memory


@torch.no_grad()
def evaluate_stream(
    model: RunnableModel,
    stream: TokenStream,
    geometry: Geometry,
    batch_size: int,
    precision: Arithmetic = Arithmetic.fp32,
    max_steps: int | None = None,
    repeat: int = 1,
    latencies: list[float] | None = None,
    progress: SegmentProgress | None = None,
) -> EvaluationResult:
    """Mean loss over the counted tokens of a stream, summed over all ranks. Collective.

    The memory starts empty and is filled by the stream's uncounted segments.

    Args:
        model: a model in one of its runtimes.
        stream: this rank's columns.
        geometry: the lengths to read with.
        batch_size: of all ranks together; only recorded.
        precision: of the matrix products.
        max_steps: stop after this many counted segments; None reads everything.
        repeat: how often the stream is read.
        latencies: gets the seconds of every counted segment, with its losses.
        progress: is told of every segment.

    Returns:
        The loss, and what it depends on.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses = LossSum(model, at_least=LOSS_TOKENS if latencies is None else 1)
    started = time.perf_counter()
    for _ in range(repeat):
        memory: Memory = []
        counted = 0
        for index in range(stream.n_batches if len(stream.columns) else 0):
            batch = stream.batch(1, index)
            if batch.counted and counted == max_steps:
                break
            counted += batch.counted
            note_progress(is_step=True)
            began = time.perf_counter()
            input, target = batch.input.to(device), batch.target.to(device)
            with autocast(precision, device):
                counts = losses if batch.counted else None
                memory = run_segment(model, input, target, memory, geometry, counts, batch.target)
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
    nats, tokens = losses.sum_over_ranks(device)
    return EvaluationResult(nats / tokens, tokens, time.perf_counter() - started, geometry, batch_size)


def evaluation_stream(corpus: Corpus, split: str, geometry: Geometry, batch_size: int, world: World) -> TokenStream:
    """This rank's columns of a split, with the uncounted segments that fill the memory.

    Args:
        corpus: where the split is read from.
        split: `valid` or `test`.
        geometry: the lengths of segments and memory.
        batch_size: columns of all ranks together.
        world: which of the ranks this is.

    Returns:
        The stream. Raises ConfigError if the split is too short for one segment.
    """
    return TokenStream(
        corpus.tokens(split),
        batch_size,
        geometry.tgt_len,
        ext_len=geometry.ext_len,
        columns=columns_of(world.rank, world.world_size, batch_size),
        warmup_len=geometry.mem_len,
        name=f"{split} split",
    )


def evaluate_split(
    model: RunnableModel,
    corpus: Corpus,
    split: str,
    geometry: Geometry,
    batch_size: int,
    precision: Arithmetic,
    world: World,
    max_steps: int | None = None,
) -> EvaluationResult:
    """The loss of one split of a corpus. Collective.

    Args:
        model: what is evaluated, in any runtime.
        corpus: the data set.
        split: train, valid or test.
        geometry: the lengths of segment and memory.
        batch_size: columns of all ranks together.
        precision: the arithmetic.
        world: this rank among the others.
        max_steps: segments that count at most; None: the whole split.
    """
    stream = evaluation_stream(corpus, split, geometry, batch_size, world)
    return evaluate_stream(model, stream, geometry, batch_size, precision, max_steps)
