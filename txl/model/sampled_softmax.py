"""Sampled softmax: a step of training computes the logits of a few words only, not those of a whole large vocabulary.

Bengio & Senécal 2008, Jean et al. 2015. Every step draws `count` distinct words, frequent ones more often, as the
rivals of every target. A logit is lowered by the log-probability that its word is drawn, so that a word which rarely
is a rival is one with more weight, and the softmax over target and rivals has the right optimum. The loss is
comparable with nothing but itself: validation computes the exact one (adaptive.py).

Only rows of drawn words, of targets and of inputs get a gradient, a sparse one, and only these rows are updated.

Shapes: n tokens, N drawn words, d embedding width, V vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.adaptive_softmax import at_least_fp32
from txl.model.transformer import TransformerXL


class Sample(NamedTuple):
    """Words drawn by `Sampler.draw`."""

    words: Tensor  # [N] distinct ids
    time: float  # until when words were drawn
    vocab_size: int

    def to(self, device: torch.device) -> "Sample":
        return self._replace(words=self.words.to(device, non_blocking=True))

    def log_chance(self, words: Tensor) -> Tensor:
        """Log-probability that these words are drawn, in float64."""
        return (-self.time * probability(words.double(), self.vocab_size)).expm1().neg().log()


class Sampler:
    """Draws words by the log-uniform distribution: P(w) = log((w + 2) / (w + 1)) / log(V + 1).

    That is Zipf's law, roughly, for a vocabulary in order of frequency.

    Draws without replacement: word w arrives after an exponential time with rate P(w), and the first N to arrive are
    taken. Given the time at which the next one would have come, word w is among them with probability
    1 - exp(-P(w) time): weighted by its inverse, the drawn words stand for all without bias (bottom-k sampling, Cohen
    & Kaplan 2007). Of N = V words it is 1, and the loss the exact one.

    What is drawn is a function of seed and step: all ranks and micro-batches share it, and a resumed run repeats it.
    """

    def __init__(self, vocab_size: int, count: int, seed: int):
        assert 0 < count <= vocab_size, (count, vocab_size)
        self.vocab_size, self.count, self.seed = vocab_size, count, seed
        self._probability = probability(torch.arange(vocab_size, dtype=torch.float64), vocab_size).numpy()

    def draw(self, step: int) -> Sample:
        if self.count == self.vocab_size:
            return Sample(torch.arange(self.vocab_size), math.inf, self.vocab_size)
        arrival = np.random.default_rng([self.seed, step]).standard_exponential(self.vocab_size) / self._probability
        order = np.argpartition(arrival, self.count)  # the first `count` come before it, in any order
        words = torch.from_numpy(np.sort(order[: self.count]))
        return Sample(words, float(arrival[order[self.count]]), self.vocab_size)


def probability(words: Tensor, vocab_size: int) -> Tensor:
    """Of each word, in one draw."""
    return (1 / (words + 1)).log1p() / math.log(vocab_size + 1)


def sample_softmax(model: TransformerXL, count: int | None, seed: int) -> tuple[Sampler | None, list[nn.Parameter]]:
    """Prepares `model` for `sampled_loss` -> the sampler, and the tables whose gradients will hold some rows only.

    Without `count`: nothing, (None, []).
    """
    if count is None:
        return None, []
    torch.sparse.check_sparse_tensor_invariants.disable()  # said aloud, or torch warns that it does not check
    model.embedding.sparse_gradient = True
    return Sampler(model.vocab_size, count, seed), [*model.embedding.tables, *model.softmax.weights]


def sampled_loss(
    model: TransformerXL, hidden: Tensor, target: Tensor, scale: float, sample: Sample
) -> tuple[Tensor, Tensor]:
    """hidden [B, T', D], target [B, T] with T' >= T -> scale * nats, and nats in float64 without gradient."""
    hidden, target = hidden[:, -target.shape[1] :].flatten(0, 1), target.flatten()
    softmax, n = model.softmax, target.numel()
    x = softmax.project(hidden, 0, model.embedding)  # [n, d]
    words = torch.cat([target, sample.words])
    rows = F.embedding(words, softmax.weight(0, model.embedding), sparse=True)  # [n + N, d]
    bias = F.embedding(words, softmax.bias(0)[:, None])[:, 0]
    offset = bias - sample.log_chance(words).to(bias.dtype)
    right = at_least_fp32((x * rows[:n]).sum(-1)) + offset[:n]  # [n]
    rivals = at_least_fp32(x @ rows[n:].t()) + offset[n:]  # [n, N]
    rivals = rivals.masked_fill(sample.words == target[:, None], -math.inf)  # the target is there already
    nats = (torch.logaddexp(right, rivals.logsumexp(-1)) - right).sum(dtype=torch.float64)
    return (scale * nats).to(bias.dtype), nats.detach()
