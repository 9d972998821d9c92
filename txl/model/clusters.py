"""Clusters of a vocabulary that is sorted by frequency; the adaptive embedding and the adaptive softmax share them.

Shapes: n tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from txl.system.devices import copy_to_device


class TokensByCluster(NamedTuple):
    """Tokens sorted by the cluster of their target."""

    cluster: Tensor  # [n] cluster of each token, in the tokens' order
    order: Tensor  # [n] indices of the tokens, cluster by cluster
    sizes: list[int]  # tokens per cluster, on the host: a training step must not wait for the device to count them

    def to(self, device: torch.device) -> "TokensByCluster":
        """The same with its tensors on `device`."""
        return TokensByCluster(copy_to_device(self.cluster, device), copy_to_device(self.order, device), self.sizes)


class FurtherTargets(NamedTuple):
    """A second target of every token. The gradient is that of loss + weight * (loss of the second targets)."""

    column: Tensor  # [n], of the head's softmax; -1: this token has none
    weight: float

    def rows(self, begin: int, end: int) -> "FurtherTargets":
        """Those of the tokens from `begin` to `end`."""
        return FurtherTargets(self.column[begin:end], self.weight)


class VocabularyClusters:
    """Where each cluster begins and ends, and how wide its vectors are."""

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], d_embed: int, div_val: int):
        edges = [0, *cutoffs, vocab_size]
        self.spans = list(zip(edges[:-1], edges[1:], strict=True))  # first id and last id + 1 of each cluster
        self.widths = [d_embed // div_val**i for i in range(len(self.spans))]
        self.n_tails = len(self.spans) - 1  # all clusters but the first, which is the head

    def sort_tokens(self, target: Tensor) -> TokensByCluster:
        """Sort tokens by the cluster of their target [n].

        The sizes are needed on the host. With targets on a GPU this call waits for it, so call it before the targets
        are sent there.
        """
        edges = torch.tensor([begin for begin, _ in self.spans[1:]], dtype=target.dtype, device=target.device)
        cluster = torch.bucketize(target.contiguous(), edges, right=True)
        sizes = torch.bincount(cluster, minlength=len(self.spans)).tolist()
        return TokensByCluster(cluster, cluster.argsort(stable=True), sizes)
