"""Clusters of a vocabulary in order of frequency, for the adaptive embedding and softmax.

Shapes: n tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from txl.system.devices import send


class Groups(NamedTuple):
    """Tokens sorted by the cluster of their target."""

    cluster: Tensor  # [n] of each token, in the tokens' order
    order: Tensor  # [n] indices of tokens, cluster by cluster
    sizes: list[int]  # tokens per cluster: known to the host, so that no step waits for the device

    def to(self, device: torch.device) -> "Groups":
        return Groups(send(self.cluster, device), send(self.order, device), self.sizes)


class Clusters:
    """Where the clusters begin and end, and how wide their vectors are."""

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], d_embed: int, div_val: int):
        edges = [0, *cutoffs, vocab_size]
        self.spans = list(zip(edges[:-1], edges[1:], strict=True))
        self.widths = [d_embed // div_val**i for i in range(len(self.spans))]
        self.n_tails = len(self.spans) - 1

    def group(self, target: Tensor) -> Groups:
        """target [n]. On a GPU this waits for the device: group targets while they are on the host."""
        edges = torch.tensor([begin for begin, _ in self.spans[1:]], dtype=target.dtype, device=target.device)
        cluster = torch.bucketize(target.contiguous(), edges, right=True)
        sizes = torch.bincount(cluster, minlength=len(self.spans)).tolist()
        return Groups(cluster, cluster.argsort(stable=True), sizes)
