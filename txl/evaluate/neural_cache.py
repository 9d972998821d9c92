"""The neural cache (Grave et al. 2017, arXiv:1612.04426).

The words that followed similar hidden states, among the last `neural_cache` tokens of the same column, get a share of
the probability.

Shapes: B columns, T segment, D model width, N tokens in the cache.
"""

import torch
from torch import Tensor

from txl.model.cluster_loss import at_least_fp32


class NeuralCache:
    """The hidden states of the last tokens of every column, each with the token that followed."""

    def __init__(self, size: int, theta: float, share: float):
        """Start empty.

        Args:
            size: N, tokens that are remembered.
            theta: factor on the products of hidden states.
            share: lambda, the cache's share of the mixture.
        """
        self.size, self.theta, self.share = size, theta, share
        self._states = self._words = torch.empty(0, 0)  # [B, room, D] and [B, room], of which `_end` are filled
        self._end = 0

    def read(self, hidden: Tensor, target: Tensor, losses: Tensor) -> Tensor:
        """The losses of a segment under the mixture; then the segment is remembered.

        The token at position t sees the positions before it, whose next tokens are known then, and never its own.

        Args:
            hidden: [B, T, D], the model's last hidden states.
            target: [B, T], the tokens after them.
            losses: [B, T], nats under the model alone.

        Returns:
            Nats [B, T] under (1 - lambda) p_model + lambda p_cache; where the cache is empty, those of the model.
        """
        hidden, T = at_least_fp32(hidden), hidden.shape[1]
        states, words = self._append(hidden, target)
        K = states.shape[1]
        distance = torch.arange(K - T, K, device=hidden.device)[:, None] - torch.arange(K, device=hidden.device)
        unseen = (distance <= 0) | (distance > self.size)  # [T, K]
        score = (self.theta * hidden @ states.transpose(1, 2)).masked_fill(unseen, -torch.inf)
        weight = score.softmax(-1).nan_to_num(0.0)  # the first token of all sees nothing
        found = (weight * (words[:, None, :] == target[:, :, None])).sum(-1).to(losses.dtype)
        share = torch.where(unseen.all(1), 0.0, self.share).to(losses)
        return -((1 - share) * (-losses).exp() + share * found).log()

    def _append(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Remember a segment; returns the states and words of the last N + T tokens, or of all so far.

        There is room for more than N tokens, so that most segments are written behind the others and nothing moves.
        """
        B, T, D = hidden.shape
        if self._end == 0:
            room = T + self.size + max(T, self.size // 4)
            self._states, self._words = hidden.new_empty(B, room, D), target.new_empty(B, room)
        if self._end + T > self._states.shape[1]:
            for kept in (self._states, self._words):
                kept[:, : self.size] = kept[:, self._end - self.size : self._end].clone()
            self._end = self.size
        begin, self._end = max(0, self._end - self.size), self._end + T
        self._states[:, self._end - T : self._end] = hidden
        self._words[:, self._end - T : self._end] = target
        return self._states[:, begin : self._end], self._words[:, begin : self._end]
