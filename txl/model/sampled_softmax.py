"""Sampled softmax: training on a large vocabulary computes the logits of a few words only.

Bengio & Senécal 2008, Jean et al. 2015. Every step draws `count` distinct words, frequent words more often. They are
the negatives of every target. Each logit is lowered by the log-probability that its word is drawn. So a word that is
rarely drawn weighs more when it is, and the softmax over the target and the negatives has the right optimum. The loss
can only be compared with other losses of the same kind: validation computes the exact one (adaptive_softmax.py).

Only the rows of drawn words, of targets and of inputs get a gradient, which is sparse, and only these are updated.

Shapes: B batch, T targets, n = B T tokens, S drawn words, D model width, d embedding width, V vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.cluster_loss import at_least_fp32
from txl.model.transformer import TransformerXL


class SampledWords(NamedTuple):
    """The words that `WordSampler.draw` drew for one step."""

    words: Tensor  # [S] distinct ids
    time: float  # arrival time of the first word that was not taken; see WordSampler
    vocab_size: int

    def to(self, device: torch.device) -> "SampledWords":
        """The same with its tensor on `device`."""
        return self._replace(words=self.words.to(device, non_blocking=True))

    def log_inclusion_probability(self, words: Tensor) -> Tensor:
        """Log-probability that these words are among the drawn ones, in float64 and in the shape of `words`."""
        return (-self.time * log_uniform_probability(words.double(), self.vocab_size)).expm1().neg().log()


class WordSampler:
    """Draws words by the log-uniform distribution: P(w) = log((w + 2) / (w + 1)) / log(V + 1).

    For a vocabulary that is sorted by frequency, this is roughly Zipf's law.

    Words are drawn without replacement. Word w arrives after an exponential time with rate P(w), and the first S words
    to arrive are taken. Given the arrival time of the next one, word w is among them with probability
    1 - exp(-P(w) time). Weighted by the inverse of this probability, the drawn words represent all words without bias
    (bottom-k sampling, Cohen & Kaplan 2007). With S = V the probability is 1 and the loss is exact.

    The drawn words are a function of seed and step. So all ranks and micro-batches share them, and a resumed run
    draws the same ones.
    """

    def __init__(self, vocab_size: int, count: int, seed: int):
        assert 0 < count <= vocab_size, (count, vocab_size)
        self.vocab_size, self.count, self.seed = vocab_size, count, seed
        words = torch.arange(vocab_size, dtype=torch.float64)
        self._probability = log_uniform_probability(words, vocab_size).numpy()

    def draw(self, step: int) -> SampledWords:
        """The words of this step."""
        if self.count == self.vocab_size:
            return SampledWords(torch.arange(self.vocab_size), math.inf, self.vocab_size)
        arrival = np.random.default_rng([self.seed, step]).standard_exponential(self.vocab_size) / self._probability
        order = np.argpartition(arrival, self.count)  # position `count` is sorted; the earlier ones are before it
        words = torch.from_numpy(np.sort(order[: self.count]))
        return SampledWords(words, float(arrival[order[self.count]]), self.vocab_size)


def log_uniform_probability(words: Tensor, vocab_size: int) -> Tensor:
    """Probability of each word in one draw."""
    return (1 / (words + 1)).log1p() / math.log(vocab_size + 1)


def prepare_sampled_softmax(
    model: TransformerXL, count: int | None, seed: int
) -> tuple[WordSampler | None, list[nn.Parameter]]:
    """Prepare `model` for `sampled_loss`.

    Returns the sampler and the tables whose gradients will be sparse; (None, []) without `count`.
    """
    if count is None:
        return None, []
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, but torch warns unless it is stated
    model.embedding.sparse_gradient = True
    return WordSampler(model.vocab_size, count, seed), [*model.embedding.tables, *model.softmax.weights]


def sampled_loss(
    model: TransformerXL, hidden: Tensor, target: Tensor, scale: float, sample: SampledWords
) -> tuple[Tensor, Tensor]:
    """Sum the sampled-softmax losses of all tokens.

    Args:
        model: owner of the softmax and the embedding.
        hidden: [B, T', D] with T' >= T; the last T positions count.
        target: [B, T].
        scale: factor on the first result.
        sample: the negatives of this step.

    Returns:
        scale * sum of the losses, to start the backward pass from; and the sum in float64, without gradient.
    """
    hidden, target = hidden[:, -target.shape[1] :].flatten(0, 1), target.flatten()
    softmax, n = model.softmax, target.numel()
    x = softmax.project(hidden, 0, model.embedding)  # [n, d]
    words = torch.cat([target, sample.words])
    (table,), (biases,) = softmax.weights or model.embedding.tables, softmax.biases  # there are no clusters
    rows = F.embedding(words, table, sparse=True)  # [n + S, d]
    bias = F.embedding(words, biases[:, None])[:, 0]
    offset = bias - sample.log_inclusion_probability(words).to(bias.dtype)
    target_logit = at_least_fp32((x * rows[:n]).sum(-1)) + offset[:n]  # [n]
    negatives = at_least_fp32(x @ rows[n:].t()) + offset[n:]  # [n, S]
    negatives = negatives.masked_fill(sample.words == target[:, None], -math.inf)  # the target must not count twice
    nats = (torch.logaddexp(target_logit, negatives.logsumexp(-1)) - target_logit).sum(dtype=torch.float64)
    return (scale * nats).to(bias.dtype), nats.detach()
