"""The losses of texts, token by token: many texts at once, and after a context that is read once.

Shapes: B texts, C tokens of the context, n tokens of a text, T segment, D model width.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.evaluate.exported_program import FixedShapeProgram
from txl.evaluate.runtimes import Memory, RunnableModel, allows_padding, fork_memory
from txl.system.precision import autocast
from txl.system.timing import synchronize
from txl.tracking.scores import LossScores

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # tokens of a batch, padding included; the logits of all are held at once
CHUNK_TOKENS = 32_768  # of a stream of texts: read ahead, sorted by length
LENGTH_STEP = 8  # the lengths of batches are rounded up to multiples, so that few sets of positions are projected


@dataclass(frozen=True)
class Score(LossScores):
    """How likely a text is under a model."""

    nats: float  # of all predicted tokens together
    tokens: int  # that were predicted: without a context, all but the first
    unknown: int = 0  # of the text's tokens: not in the vocabulary
    token_losses: list[tuple[str, float]] | None = None  # (token, nats) of every predicted token, if asked for

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan


@dataclass(frozen=True)
class Prefix:
    """Tokens that come before every text, after they were read."""

    tokens: Sequence[int]
    memory: Memory  # after all of them but the last, which is the first input of a text


class TokenScorer:
    """Computes the loss of every token of a text, with the memory that the geometry allows."""

    def __init__(
        self,
        model: RunnableModel,
        geometry: Geometry,
        precision: Arithmetic = Arithmetic.fp32,
        latencies: list[float] | None = None,
    ):
        """Prepare to score.

        Args:
            model: a model in one of its runtimes, in evaluation mode.
            geometry: the lengths to read with; the segments of a text begin at its start.
            precision: of the matrix products.
            latencies: gets the seconds of every segment, its losses included.
        """
        self.model, self.geometry, self.precision, self.latencies = model, geometry, precision, latencies
        self.device = next(model.parameters()).device

    def read_prefix(self, tokens: Sequence[int]) -> "Prefix":
        """Read the tokens that come before every text. Texts that follow them start from a copy of that memory."""
        geometry = self._fitted(len(tokens))
        return Prefix(tokens, self._read_context(tokens, geometry))

    def score_stream(self, texts: Iterable[np.ndarray], context: Sequence[int] = ()) -> Iterator[np.ndarray]:
        """As `score`, for any number of texts: the memory that it takes does not grow with them.

        Args:
            texts: token ids of each text. CHUNK_TOKENS are read ahead, so that texts of similar length meet.
            context: as of `score`.

        Yields:
            The losses of each text, in the order of the texts.
        """
        prefix = self.read_prefix(context)
        chunk: list[np.ndarray] = []
        tokens = 0
        for text in texts:
            chunk.append(text)
            tokens += len(text) + 1
            if tokens >= CHUNK_TOKENS:
                yield from self._score_chunk(chunk, prefix)
                chunk, tokens = [], 0
        yield from self._score_chunk(chunk, prefix)

    def score(self, texts: Sequence[np.ndarray], context: Sequence[int] = ()) -> list[np.ndarray]:
        """The losses of every text.

        Texts of similar length are read together. The result does not depend on that, but for rounding.

        Args:
            texts: token ids of each text.
            context: tokens before every text. They are read once, and all texts start from that memory. Without them
                the first token of a text is given and not predicted.

        Returns:
            For every text, the nats of its predicted tokens: [n] float64, or [n - 1] without a context.
        """
        return list(self.score_stream(texts, context))

    def _score_chunk(self, texts: Sequence[np.ndarray], prefix: "Prefix") -> list[np.ndarray]:
        results = [np.zeros(0)] * len(texts)
        before = prefix.tokens[-1 - self.geometry.ext_len :]  # the last is the first input, the others extend it
        for batch in self._batches([len(text) for text in texts]):
            longest = max(len(texts[i]) for i in batch)
            geometry = self._fitted(len(prefix.tokens) + longest)
            rows = np.zeros((len(batch), len(before) + longest), np.int64)
            rows[:, : len(before)] = before
            for row, i in zip(rows, batch, strict=True):
                row[len(before) : len(before) + len(texts[i])] = texts[i]
            ends = [len(before) + len(texts[i]) for i in batch]
            memory = fork_memory(prefix.memory, len(batch), geometry)
            found, _ = self._read(rows, ends, max(0, len(before) - 1), memory, geometry)
            for i, losses in zip(batch, found, strict=True):
                results[i] = losses
        return results

    def score_in_sequence(self, texts: Iterable[np.ndarray], context: Sequence[int] = ()) -> Iterator[np.ndarray]:
        """As `score`, but the context of each text is `context` and all texts before it: they are one long text."""
        memory: Memory = self._read_context(context, self.geometry)
        before = list(context[-1 - self.geometry.ext_len :])
        for text in texts:
            row = np.array([[*before, *text]], np.int64)
            (losses,), memory = self._read(row, [row.shape[1]], max(0, len(before) - 1), memory, self.geometry)
            yield losses
            before = row[0, -1 - self.geometry.ext_len :].tolist()

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of texts, longest first, in batches of at most BATCH_TOKENS tokens with padding (or one text)."""
        most_tokens = BATCH_TOKENS[self.device.type]
        most_texts = 1 if isinstance(self.model, FixedShapeProgram) else len(lengths)
        pads = allows_padding(self.model)
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            longest = lengths[batch[0]] if batch else lengths[i]
            is_full = (len(batch) + 1) * longest > most_tokens or len(batch) == most_texts
            if batch and (is_full or (lengths[i] < longest and not pads)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _fitted(self, tokens: int) -> Geometry:
        """Shorter lengths that read a text of this many tokens alike: a cache then takes no more room than the text."""
        if isinstance(self.model, FixedShapeProgram):
            return self.geometry
        tokens = -(-max(1, tokens) // LENGTH_STEP) * LENGTH_STEP
        if tokens >= self.geometry.mem_len:
            return self.geometry
        return replace(self.geometry, mem_len=tokens, tgt_len=min(self.geometry.tgt_len, tokens))

    def _read_context(self, context: Sequence[int], geometry: Geometry) -> Memory:
        """The memory after all tokens of the context but the last, which is the first input of a text."""
        if len(context) < 2:
            return []
        row = np.array([context], np.int64)
        return self._read(row, [len(context)], 0, [], geometry, only_memory=True)[1]

    @torch.no_grad()
    def _read(
        self,
        rows: np.ndarray,
        ends: Sequence[int],
        start: int,
        memory: Memory,
        geometry: Geometry,
        only_memory: bool = False,
    ) -> tuple[list[np.ndarray], Memory]:
        """Read rows from position `start` on; returns each row's losses, and the memory after all tokens but the last.

        Args:
            rows: token ids [B, length], padded with any tokens.
            ends: where each row ends.
            start: position of the first input; the tokens before it are in the memory.
            memory: after the tokens before `start`.
            geometry: the lengths to read with.
            only_memory: compute no losses.

        Returns:
            The nats of the tokens from start + 1 on of every row, and the memory.
        """
        ids, last = torch.from_numpy(rows).to(self.device), torch.tensor(ends, device=self.device)[:, None]
        parts: list[tuple[Tensor, Tensor]] = []  # row of each loss, and the losses
        for begin in range(start, rows.shape[1] - 1, geometry.tgt_len):
            end = min(begin + geometry.tgt_len, rows.shape[1] - 1)
            input, target = ids[:, max(0, begin - geometry.ext_len) : end], ids[:, begin + 1 : end + 1]
            counted = torch.arange(begin + 1, end + 1, device=self.device) < last  # [B, T]
            began = time.perf_counter()
            with autocast(self.precision, self.device):
                losses, memory = self._segment(input, target, counted, memory, geometry, only_memory)
            if losses is not None:
                parts.append((counted.nonzero()[:, 0], losses))
            if self.latencies is not None:
                synchronize()
                self.latencies.append(time.perf_counter() - began)
        if not parts:
            return [np.zeros(0) for _ in ends], memory
        row_of, nats = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
        order = row_of.argsort(stable=True)
        counts = torch.bincount(row_of, minlength=len(ends)).tolist()
        return list(np.split(nats[order].double().numpy(), np.cumsum(counts)[:-1])), memory

    def _segment(
        self, input: Tensor, target: Tensor, counted: Tensor, memory: Memory, geometry: Geometry, only_memory: bool
    ) -> tuple[Tensor | None, Memory]:
        """Nats of the counted targets of a segment, in the order of rows, and the new memory."""
        if isinstance(self.model, FixedShapeProgram):
            losses, memory = self.model(input, target, memory)
            return losses[counted], memory
        hidden, memory = self.model(input, memory, geometry)
        if only_memory:
            return None, memory
        hidden = hidden[:, -target.shape[1] :]
        return self.model.loss(hidden[counted][None], target[counted][None])[0], memory
