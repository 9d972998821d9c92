"""Adaptive input embedding (Baevski & Auli 2019): frequent words get wide vectors, rare ones narrow.

Shapes: D model width, V vocabulary, V_i words and d_i width of cluster i.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.clusters import Clusters
from txl.model.linear import linear


class AdaptiveEmbedding(nn.Module):
    """Token ids -> vectors of width D, scaled by sqrt(D)."""

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], d_embed: int, d_model: int, div_val: int):
        super().__init__()
        self.clusters = Clusters(vocab_size, cutoffs, d_embed, div_val)
        self.scale = d_model**0.5
        shared = div_val == 1
        spans = [(0, vocab_size)] if shared else self.clusters.spans
        widths = self.clusters.widths[: len(spans)]
        self.tables = nn.ParameterList(
            torch.zeros(end - begin, width) for (begin, end), width in zip(spans, widths, strict=True)
        )
        projected = not shared or d_embed != d_model
        self.projections = nn.ParameterList(torch.zeros(d_model, width) for width in widths if projected)
        self.sparse_gradient = False  # of the one table, on CPUs in training
        self._shared: Tensor | None = None

    def weight(self, i: int) -> Tensor:
        """Vectors of cluster i: [V_i, d_i]."""
        if len(self.tables) == len(self.clusters.spans):
            return self.tables[i]
        begin, end = self.clusters.spans[i]
        return self.tables[0][begin:end]

    def projection(self, i: int) -> Tensor | None:
        """[D, d_i], or None where vectors already have width D."""
        if len(self.projections) == 0:
            return None
        return self.projections[i if len(self.projections) > 1 else 0]

    def shared_tables(self) -> list[Tensor]:
        """The tables for a softmax that is tied to them, once after every forward pass.

        A view of the one table passes on the softmax's gradient, which is dense, to the lookup, which adds its own
        rows to it: autograd would copy the whole table to add them, as it does not do so in place.
        """
        view, self._shared = self._shared, None
        return list(self.tables) if view is None else [view]

    def forward(self, input: Tensor) -> Tensor:
        """input [...] -> [..., D]"""
        if len(self.tables) == 1:
            # A GPU would wait to count the rows, and add them up in any order.
            if self.sparse_gradient and self.training and input.device.type == "cpu":
                vectors, self._shared = _Lookup.apply(input, self.tables[0])
            else:
                vectors = F.embedding(input, self.tables[0])
            if len(self.projections):
                vectors = linear(vectors, self.projections[0])
            return vectors * self.scale
        total = None
        for (begin, end), table, projection in zip(self.clusters.spans, self.tables, self.projections, strict=True):
            # Every token passes through every cluster, as a zero where it is another's: no token is moved and
            # the host need not know how many there are. The projections are small beside one layer.
            mine = (input >= begin) & (input < end)
            vectors = F.embedding((input - begin).clamp(0, end - begin - 1), table) * mine.unsqueeze(-1)
            part = linear(vectors, projection)
            total = part if total is None else total + part
        return total * self.scale


class _Lookup(torch.autograd.Function):
    """ids [...], table [V, d] -> vectors [..., d], and the table as the softmax reads it."""

    @staticmethod
    def forward(ctx, ids: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.ids, ctx.shape = ids, table.shape
        ctx.set_materialize_grads(False)
        return F.embedding(ids, table), table.view_as(table)

    @staticmethod
    def backward(ctx, by_vectors: Tensor | None, by_softmax: Tensor | None) -> tuple[None, Tensor | None]:
        if by_vectors is None:
            return None, by_softmax
        ids, rows = ctx.ids.flatten(), by_vectors.flatten(0, -2)
        if by_softmax is None:
            return None, torch.sparse_coo_tensor(ids[None], rows, ctx.shape, check_invariants=False)
        return None, by_softmax.index_add_(0, ids, rows)
