"""Adaptive input embedding (Baevski & Auli 2019): frequent words get wide vectors, rare words narrow ones.

Shapes: D model width, V vocabulary, V_i words and d_i width of cluster i.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.clusters import VocabularyClusters
from txl.model.linear import linear


class AdaptiveEmbedding(nn.Module):
    """Token ids -> vectors of width D, scaled by sqrt(D)."""

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], d_embed: int, d_model: int, div_val: int):
        """Make the tables and projections, filled with zeros.

        Args:
            vocab_size: V.
            cutoffs: first word of every cluster but the head; empty for one cluster.
            d_embed: width of the head's vectors.
            d_model: D.
            div_val: cluster i has vectors of width d_embed / div_val^i. With 1 all clusters share one table.
        """
        super().__init__()
        self.clusters = VocabularyClusters(vocab_size, cutoffs, d_embed, div_val)
        self.scale: float = d_model**0.5
        shared = div_val == 1
        spans = [(0, vocab_size)] if shared else self.clusters.spans
        widths = self.clusters.widths[: len(spans)]
        self.tables = nn.ParameterList(
            torch.zeros(end - begin, width) for (begin, end), width in zip(spans, widths, strict=True)
        )
        projected = not shared or d_embed != d_model
        self.projections = nn.ParameterList(torch.zeros(d_model, width) for width in widths if projected)
        self.sparse_gradient = False  # whether the one table gets a sparse gradient on a CPU
        self._table_for_softmax: Tensor | None = None

    def projection(self, i: int) -> Tensor | None:
        """Projection [D, d_i] of cluster i, or None if its vectors already have width D."""
        if len(self.projections) == 0:
            return None
        projection: Tensor = self.projections[i if len(self.projections) > 1 else 0]
        return projection

    def tables_for_softmax(self) -> list[Tensor]:
        """The tables for a softmax that is tied to them. Call it once after every forward pass.

        With `sparse_gradient` this is a view of the one table that the last lookup made. The gradient of the softmax
        is dense; through the view it reaches the lookup's backward pass, which adds the lookup's rows to it in place.
        Without the view, autograd would copy the whole table to add the two gradients.
        """
        view, self._table_for_softmax = self._table_for_softmax, None
        return list(self.tables) if view is None else [view]

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [...] -> vectors [..., D]."""
        if len(self.tables) == 1:
            return self._look_up(input) * self.scale
        total: Tensor | None = None
        for (begin, end), table, projection in zip(self.clusters.spans, self.tables, self.projections, strict=True):
            # Every token passes through every cluster and counts as zero in all but its own. So no token is moved,
            # and the host need not know how many tokens a cluster has. The projections are cheap beside one layer.
            inside = (input >= begin) & (input < end)
            vectors = F.embedding((input - begin).clamp(0, end - begin - 1), table) * inside.unsqueeze(-1)
            part = linear(vectors, projection)
            total = part if total is None else total + part
        assert total is not None
        return total * self.scale

    def _look_up(self, input: Tensor) -> Tensor:
        """Vectors [..., D] from the one table, before they are scaled."""
        vectors: Tensor
        if self.sparse_gradient and torch.is_grad_enabled() and input.device.type in ("cpu", "cuda"):
            vectors, self._table_for_softmax = _SparseLookup.apply(input, self.tables[0])  # type: ignore[no-untyped-call]
        else:
            vectors = F.embedding(input, self.tables[0])
        return linear(vectors, self.projections[0]) if len(self.projections) else vectors


class _SparseLookup(torch.autograd.Function):
    """ids [...], table [V, d] -> vectors [..., d], and a view of the table for the softmax."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.ids, ctx.shape = ids, table.shape
        ctx.set_materialize_grads(False)
        return F.embedding(ids, table), table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad_vectors: Tensor | None, grad_view: Tensor | None) -> tuple[None, Tensor | None]:
        """The gradient of the table: added into that of the view. If only vectors were read, it is sparse on a CPU.

        On a GPU it is never sparse: the host would wait for the number of rows.
        """
        if grad_vectors is None:
            return None, grad_view
        ids, rows = ctx.ids.flatten(), grad_vectors.flatten(0, -2)
        if grad_view is None and rows.device.type != "cpu":
            grad_view = rows.new_zeros(ctx.shape)
        if grad_view is None:
            return None, sparse_rows(ids, rows, ctx.shape, is_coalesced=False)
        if grad_view.is_sparse:
            return None, grad_view + sparse_rows(ids, rows, ctx.shape, is_coalesced=False)
        return None, add_rows(grad_view, ids, rows)


def sparse_rows(ids: Tensor, rows: Tensor, shape: Sequence[int], is_coalesced: bool = True) -> Tensor:
    """Rows of a table as a sparse tensor.

    Args:
        ids: [n], which rows they are.
        rows: [n, d].
        shape: of the table, [V, d].
        is_coalesced: no id stands there twice, and they ascend.

    Returns:
        A sparse tensor of that shape.
    """
    return torch.sparse_coo_tensor(ids[None], rows, tuple(shape), check_invariants=False, is_coalesced=is_coalesced)


def rows_by_table(words: Tensor, tables: Iterable[Tensor]) -> list[Tensor]:
    """The rows of words in every table, of which each goes on where the one before it ends.

    Args:
        words: ids [w], ascending.
        tables: [V_i, d_i] each, which hold the vectors of the whole vocabulary together.

    Returns:
        For each table the rows [w_i] of those of the words that it holds, ascending.
    """
    found, begin = [], 0
    for table in tables:
        found.append(words[(words >= begin) & (words < begin + len(table))] - begin)
        begin += len(table)
    return found


def add_rows(table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """table[ids] += rows, in place, in an order that is the same each time; returns the table.

    On a GPU, index_add_ adds by atomic operations in any order. index_put_ sorts the ids.
    """
    if table.device.type == "cpu":
        return table.index_add_(0, ids, rows)
    return table.index_put_((ids,), rows, accumulate=True)
