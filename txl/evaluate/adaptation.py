"""Evaluation that learns from the text that it has scored.

Dynamic evaluation (dynamic_weights.py): every segment is scored with the weights as they are, and the weights then
follow its gradient. In the order of the text, so a loss never depends on its own target or on a later one. With
several columns (batch_size above 1) one set of weights learns from all columns: a segment is scored before any
column's segment of the same index is learnt. That is faster, and another number: a column then profits from what other
columns have read, which may stand later in the text. Several processes hold some of the columns each and add up their
gradients, so that the numbers are those of one process.

The neural cache (neural_cache.py) remembers the last words of every column.

Shapes: B columns, T segment.
"""

import time

import torch
from torch import Tensor

from txl.config.adaptation import Adaptation, Dynamic
from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.data.batches import TokenStream
from txl.evaluate.dynamic_weights import DynamicWeights
from txl.evaluate.kv_cache import CachedTransformerXL, FixedAttentionTransformerXL
from txl.evaluate.loss import EvaluationResult, LossSum, SegmentProgress
from txl.evaluate.neural_cache import NeuralCache
from txl.evaluate.runtimes import Memory
from txl.model.transformer import TransformerXL
from txl.system.hang_watch import note_progress
from txl.system.precision import autocast

Readable = TransformerXL | CachedTransformerXL


def evaluate_adaptively(
    model: Readable,
    stream: TokenStream,
    geometry: Geometry,
    batch_size: int,
    options: Adaptation,
    precision: Arithmetic = Arithmetic.fp32,
    roots: list[Tensor] | None = None,
    max_steps: int | None = None,
    progress: SegmentProgress | None = None,
) -> EvaluationResult:
    """Mean loss over the counted tokens of a stream by a model that learns from what it has scored. Collective.

    The segments that fill the memory are read, and not learnt: they are counted later, or belong to another column.

    Args:
        model: the weights; they are the trained ones again afterwards. Eager for dynamic evaluation.
        stream: this rank's columns.
        geometry: the lengths to read with.
        batch_size: columns of all ranks together.
        options: how it learns.
        precision: of the matrix products.
        roots: for `rms`, see `gradient_roots`.
        max_steps: stop after this many counted segments; None reads everything.
        progress: is told of every segment.

    Returns:
        The loss, and what it depends on.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    weights, cache = _learners(model, options, roots)
    with autocast(precision, device):
        reader = _SegmentReader(_with_resting_attention(model, geometry, batch_size, options), geometry, cache)
    losses, counted, started = LossSum(model, at_least=1), 0, time.perf_counter()
    try:
        for index in range(stream.n_batches):
            batch = stream.batch(1, index)
            if batch.counted and counted == max_steps:
                break
            counted += batch.counted
            note_progress(is_step=True)
            learner = weights if batch.counted else None
            words = None if learner is None else learner.words_to_learn(batch.input, batch.target)
            total = None
            if len(stream.columns):
                input, target = batch.input.to(device), batch.target.to(device)
                scale = 1 / (target.shape[1] * batch_size * options.dynamic_segments)
                with torch.set_grad_enabled(learner is not None), autocast(precision, device):
                    total = reader.read(input, target, losses if batch.counted else None, scale, words)
            if learner is not None:
                learner.learn(total)
            if progress is not None and progress.is_due():
                progress.report(index + 1, stream.n_batches, losses)
    finally:
        if weights is not None:
            weights.restore()
        model.train(training)
    nats, tokens = losses.sum_over_ranks(device)
    return EvaluationResult(nats / tokens, tokens, time.perf_counter() - started, geometry, batch_size)


def _learners(
    model: Readable, options: Adaptation, roots: list[Tensor] | None
) -> tuple[DynamicWeights | None, NeuralCache | None]:
    """What learns from the segments that were scored: the weights, a cache of hidden states, or both."""
    weights = cache = None
    if options.dynamic is not Dynamic.none:
        assert isinstance(model, TransformerXL), "the rules have checked it"
        weights = DynamicWeights(model, options, roots)
    if options.neural_cache is not None:
        cache = NeuralCache(options.neural_cache, options.cache_theta, options.cache_lambda)
    return weights, cache


def _with_resting_attention(model: Readable, geometry: Geometry, batch_size: int, options: Adaptation) -> Readable:
    """What reads the text: the model, or with dynamic_attention=false one that shares its weights."""
    if options.dynamic_attention:
        return model
    assert isinstance(model, TransformerXL), "the rules have checked it"
    return FixedAttentionTransformerXL(model, geometry, batch_size)


class _SegmentReader:
    """Scores the segments of a text in their order, with memory and neural cache."""

    def __init__(self, model: Readable, geometry: Geometry, cache: NeuralCache | None):
        self._model, self._geometry, self._cache = model, geometry, cache
        self._weights = model.model if isinstance(model, CachedTransformerXL) else model
        self._memory: Memory = []

    def read(
        self, input: Tensor, target: Tensor, losses: LossSum | None, scale: float, words: Tensor | None
    ) -> Tensor | None:
        """Score a segment; returns its summed loss times `scale`, to learn from, if there is one.

        Args:
            input: token ids [B, T'].
            target: the tokens to predict [B, T].
            losses: the segment's losses are added to it; None if the segment only fills memory and cache.
            scale: factor on what is learnt from.
            words: those whose vectors learn; None: all.
        """
        hidden, self._memory = self._model(input, self._memory, self._geometry)
        if self._cache is None:
            if losses is None:
                return None
            total, nats = self._weights.total_loss(hidden, target, scale, is_root=True, words=words)
            losses.total, losses.tokens = losses.total + nats, losses.tokens + target.numel()
            return total
        hidden = hidden[:, -target.shape[1] :]
        loss = self._weights.loss(hidden, target)
        with torch.no_grad():
            mixed = self._cache.read(hidden.detach(), target, loss.detach())
        if losses is not None:
            losses.add_losses(mixed)
        return loss.sum() * scale
