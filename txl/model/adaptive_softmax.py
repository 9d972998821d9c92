"""Adaptive softmax (Grave et al. 2017): frequent words get wide vectors, rare words narrow ones.

The vocabulary is sorted by frequency and cut at `cutoffs` into a head and tail clusters. With `div_val = 1` all
clusters share one table of vectors. Otherwise cluster i has vectors of width d_embed / div_val^i and a projection of
its own to D.

`AdaptiveSoftmax.forward` defines the loss: one number per token, differentiated by autograd. Training uses
`AdaptiveSoftmax.total_loss`. It gives the same sum, but it computes the gradient in the same pass and holds a bounded
number of logits at a time.

Shapes: n tokens, D model width, V vocabulary, V_i words and d_i width of cluster i, C tail clusters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.adaptive_embedding import AdaptiveEmbedding, rows_by_table, sparse_rows
from txl.model.cluster_loss import BlockGradient, WeightAndBias, at_least_fp32, loss_of_cluster, wide
from txl.model.clusters import FurtherTargets, TokensByCluster, VocabularyClusters
from txl.model.linear import linear

# Indices of a weight and a bias among the parameters, and the rows to take of both; None: all.
ColumnBlock = tuple[int, int, slice | None]


class AdaptiveSoftmax(nn.Module):
    """Negative log-likelihood of the next token.

    The head's softmax is over the V_0 words of the head and C more columns. Column V_0 + C - i stands for the event
    that the word is in tail cluster i, which has a softmax of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        cutoffs: Sequence[int],
        d_embed: int,
        d_model: int,
        div_val: int,
        tie_weight: bool,
        tie_projs: Sequence[bool],
    ):
        """Make the parameters, filled with zeros.

        Args:
            vocab_size: V.
            cutoffs: first word of every tail cluster; empty for one plain softmax.
            d_embed: width of the head's vectors.
            d_model: D.
            div_val: cluster i has vectors of width d_embed / div_val^i.
            tie_weight: use the embedding's tables instead of own ones.
            tie_projs: per cluster, use the embedding's projection; the last entry holds for all further clusters.
        """
        super().__init__()
        self.clusters = clusters = VocabularyClusters(vocab_size, cutoffs, d_embed, div_val)
        spans = [(0, vocab_size)] if div_val == 1 else clusters.spans
        self.biases = nn.ParameterList(torch.zeros(end - begin) for begin, end in spans)
        self.weights = nn.ParameterList()  # empty if the weights are the embedding's
        self.fixed_weights: list[WeightAndBias] = []  # of every softmax, from `fix_weights`
        if not tie_weight:
            widths = clusters.widths[: len(spans)]
            self.weights.extend(torch.zeros(e - b, width) for (b, e), width in zip(spans, widths, strict=True))
        if clusters.n_tails:
            self.cluster_weight = nn.Parameter(torch.zeros(clusters.n_tails, d_embed))
            self.cluster_bias = nn.Parameter(torch.zeros(clusters.n_tails))
        projected = div_val > 1 or d_embed != d_model
        self.projections = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.zeros(d_model, width))
                for i, width in enumerate(clusters.widths)
                if projected and not tie_projs[min(i, len(tie_projs) - 1)]
            }
        )

    @torch.no_grad()
    def set_frequencies(self, counts: Tensor) -> None:
        """Set the biases so that a hidden state of zero predicts every word with its frequency.

        Args:
            counts: [V], how often each word occurs; words that never occur count as half an occurrence.
        """
        counts = counts.double().clamp(min=0.5)
        parts, biases = self._by_cluster([counts]), self._by_cluster(list(self.biases))
        tails = torch.stack([part.sum() for part in reversed(parts[1:])]) if parts[1:] else counts[:0]
        for i, part in enumerate(parts):
            total = counts.sum() if i == 0 else part.sum()
            biases[i].copy_((part / total).log())
        if self.clusters.n_tails:
            self.cluster_bias.copy_((tails / counts.sum()).log())

    def columns(self, embedding: AdaptiveEmbedding) -> list[WeightAndBias]:
        """All columns of every softmax: [v, d_i] and [v], v = V_i; for the head with those of the tails V_0 + C."""
        if self.fixed_weights:
            return self.fixed_weights
        weights = self._by_cluster(list(self.weights) or embedding.tables_for_softmax())
        biases = self._by_cluster(list(self.biases))
        if self.clusters.n_tails:
            weights[0] = torch.cat([weights[0], self.cluster_weight])
            biases[0] = torch.cat([biases[0], self.cluster_bias])
        return list(zip(weights, biases, strict=True))

    def _by_cluster(self, tables: list[Tensor]) -> list[Tensor]:
        """Each cluster's rows. One table is split at once: the gradient of slices would fill a table for each."""
        spans = self.clusters.spans
        return tables if len(tables) == len(spans) else list(tables[0].split([end - begin for begin, end in spans]))

    @torch.no_grad()
    def fix_weights(self, embedding: AdaptiveEmbedding, prepare: Callable[[Tensor], Tensor]) -> None:
        """From now on compute with the present weights, without gradients; `prepare` makes what products take."""
        self.fixed_weights = [(prepare(weight), bias.clone()) for weight, bias in self.columns(embedding)]

    def project(self, hidden: Tensor, i: int, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> [n, d_i] by the own projection of cluster i, or the embedding's if they are tied."""
        own = self.projections[str(i)] if str(i) in self.projections else embedding.projection(i)
        return hidden if own is None else linear(hidden, own.t())

    def logits(self, hidden: Tensor, i: int, embedding: AdaptiveEmbedding, columns: list[WeightAndBias]) -> Tensor:
        """The logits of one softmax.

        Args:
            hidden: [n, D].
            i: the cluster; 0 is the head.
            embedding: owner of the tied projections.
            columns: from the method of that name.

        Returns:
            [n, v] in float32 or wider; for v see `columns`.
        """
        weight, bias = columns[i]
        return at_least_fp32(linear(self.project(hidden, i, embedding), weight, bias.to(weight.dtype)))

    def forward(self, hidden: Tensor, target: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D], target [n] -> loss [n] in nats, in the order of the tokens."""
        tokens = self.clusters.sort_tokens(target)
        head_target, columns = self._head_target(target), self.columns(embedding)
        loss = F.cross_entropy(self.logits(hidden, 0, embedding, columns), head_target, reduction="none")
        for i, index in enumerate(tokens.order.split(tokens.sizes)):
            if i > 0 and len(index) > 0:
                logits = self.logits(hidden[index], i, embedding, columns)
                word = target[index] - self.clusters.spans[i][0]
                loss = loss.index_add(0, index, F.cross_entropy(logits, word, reduction="none"))
        return loss

    def loss_through_all_clusters(self, hidden: Tensor, target: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """As `forward`, for a few tokens: each passes through every cluster, and counts in its own.

        So no shape depends on the targets, and the host need not know them: a CUDA graph can hold it.
        """
        columns = self.columns(embedding)
        of_tails = torch.zeros(len(target), dtype=torch.float32, device=target.device)
        for i, (begin, end) in enumerate(self.clusters.spans[1:], 1):
            inside = (target >= begin) & (target < end)
            word = (target - begin).clamp(0, end - begin - 1)
            loss = F.cross_entropy(self.logits(hidden, i, embedding, columns), word, reduction="none")
            of_tails = of_tails + torch.where(inside, loss, 0.0)
        logits = self.logits(hidden, 0, embedding, columns)
        return F.cross_entropy(logits, self._head_target(target), reduction="none") + of_tails

    def _head_target(self, target: Tensor) -> Tensor:
        """Column [n] of the head's softmax: the word itself, or its cluster. -1 stays -1."""
        column, columns = target, self.clusters.spans[0][1] + self.clusters.n_tails
        for i, (begin, _) in enumerate(self.clusters.spans[1:], 1):
            column = torch.where(target >= begin, columns - i, column)
        return column

    def total_loss(
        self,
        hidden: Tensor,
        target: Tensor,
        embedding: AdaptiveEmbedding,
        scale: float = 1.0,
        tokens: TokensByCluster | None = None,
        is_root: bool = False,
        second_target: Tensor | None = None,
        second_weight: float = 0.0,
        words: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum the losses of all tokens; hold at most LOGITS_AT_ONCE logits, and their probabilities, at a time.

        Args:
            hidden: [n, D].
            target: [n].
            embedding: owner of the tied weights and projections.
            scale: factor on the first result.
            tokens: the targets by cluster, if they were sorted on the host.
            is_root: the backward pass will start at the first result, with a gradient of 1. On a GPU this saves a
                multiplication of all gradients by a number that the host does not know.
            second_target: [n], a further word that each token is to predict; -1: none. It counts in the gradients
                only, and in the head only: of a word in a tail, its cluster.
            second_weight: factor on its loss.
            words: [w], ascending: only their vectors get a gradient, which is then sparse, with exactly these rows.
                None: all vectors.

        Returns:
            scale * sum of the losses, to start the backward pass from; and the sum in float64, without gradient.
        """
        tokens = tokens or self.clusters.sort_tokens(target)
        targets, inputs = [self._head_target(target)], [self.project(hidden, 0, embedding)]
        for i, index in enumerate(tokens.order.split(tokens.sizes)):
            if i > 0:
                targets.append(target[index] - self.clusters.spans[i][0])
                inputs.append(self.project(hidden[index], i, embedding))
        clusters, parameters = self._column_blocks(embedding)
        tensors = [*inputs, *parameters]
        if not torch.is_grad_enabled():  # an autograd function cannot see this, and would compute an unused gradient
            tensors = [tensor.detach() for tensor in tensors]
        further = None if second_target is None else FurtherTargets(self._head_target(second_target), second_weight)
        rows: list[Tensor | None] = [None] * len(parameters)
        if words is not None:  # the tables are the first parameters, and each has one bias
            rows[: len(self.biases)] = rows_by_table(words, parameters[: len(self.biases)])
        total, nats = _TotalLoss.apply(clusters, targets, further, rows, scale, is_root, *tensors)  # type: ignore[no-untyped-call]
        return total, nats

    def _column_blocks(self, embedding: AdaptiveEmbedding) -> tuple[list[list[ColumnBlock]], list[Tensor]]:
        """Per cluster, the blocks of its softmax's columns; and the parameters that the blocks refer to."""
        if self.fixed_weights:
            n = len(self.fixed_weights)
            matrices, biases = zip(*self.fixed_weights, strict=True)
            return [[(i, n + i, None)] for i in range(n)], [*matrices, *biases]
        tables = list(self.weights) or embedding.tables_for_softmax()
        parameters: list[Tensor] = [*tables, *self.biases]
        clusters: list[list[ColumnBlock]] = []
        for i, (begin, end) in enumerate(self.clusters.spans):
            rows = slice(begin, end) if len(tables) == 1 else None
            table = 0 if len(tables) == 1 else i
            clusters.append([(table, len(tables) + table, rows)])
        if self.clusters.n_tails:
            clusters[0].append((len(parameters), len(parameters) + 1, None))
            parameters += [self.cluster_weight, self.cluster_bias]
        return clusters, parameters

    def log_prob(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> log-probability of every word [n, V]."""
        columns = self.columns(embedding)
        head = self.logits(hidden, 0, embedding, columns).log_softmax(-1)
        shortlist = self.clusters.spans[0][1]
        parts = [head[:, :shortlist]]
        for i in range(1, len(self.clusters.spans)):
            tail = self.logits(hidden, i, embedding, columns).log_softmax(-1)
            parts.append(tail + head[:, -i, None])
        return torch.cat(parts, dim=-1)


class _TotalLoss(torch.autograd.Function):
    """Sum of the cross entropies of all clusters. The forward pass computes the gradient while it has the logits.

    The gradients of column blocks are written straight into the gradients of the whole tables. Autograd would fill
    one tensor of the table's size with zeros for every block, and add them up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        clusters: list[list[ColumnBlock]],
        targets: list[Tensor],
        further: FurtherTargets | None,
        rows: list[Tensor | None],
        scale: float,
        is_root: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The sum of all losses, and the same without `scale` in nats (float64, without a gradient).

        Args:
            ctx: keeps the gradients for the backward pass.
            clusters: the blocks of columns of every softmax; a block names its parameters by their place.
            targets: [n] columns, for every softmax.
            further: second targets of the head's softmax.
            rows: of every parameter, those that get a gradient; None: all.
            scale: factor on the sum and on its gradients.
            is_root: as in `total_loss`.
            tensors: the inputs [n, d] of every softmax, then all parameters.

        Returns:
            The sum times `scale`, and the sum.
        """
        inputs, parameters = tensors[: len(clusters)], tensors[len(clusters) :]
        kind = inputs[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs[0].dtype
        grads = None
        if any(ctx.needs_input_grad):
            sizes = [len(p) if kept is None else len(kept) for p, kept in zip(parameters, rows, strict=True)]
            grads = [p.new_empty(size, *p.shape[1:]) for p, size in zip(parameters, sizes, strict=True)]
        total, input_grads = torch.zeros((), dtype=torch.float64, device=inputs[0].device), []
        with torch.autocast(kind, enabled=False):
            of_cluster = [further] + [None] * (len(clusters) - 1)
            for x, target, second, blocks in zip(inputs, targets, of_cluster, clusters, strict=True):
                weights = _take(parameters, blocks)
                block_grads = [_gradient_of(block, grads, rows) for block in blocks] if grads else None
                nats, grad = loss_of_cluster(x.to(dtype), target, weights, block_grads, scale, second)
                total += nats
                input_grads.append(grad)
        ctx.grads = [*input_grads, *grads] if grads else None
        ctx.dtypes, ctx.is_root = [x.dtype for x in inputs], is_root
        ctx.rows, ctx.shapes = rows, [p.shape for p in parameters]
        ctx.mark_non_differentiable(total)
        return (total * scale).to(wide(parameters[0].dtype)), total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """The gradients that the forward pass computed, times that of the sum. They are handed out once."""
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "a second backward pass: call total_loss() again"
        is_one = ctx.is_root or (grad_total.device.type == "cpu" and grad_total.item() == 1)
        if not is_one:  # `scale` does not hold all factors
            for grad in grads:
                grad *= grad_total
        for i, dtype in enumerate(ctx.dtypes):
            grads[i] = grads[i].to(dtype)
        of_parameters = grads[len(ctx.dtypes) :]
        for i, (kept, shape) in enumerate(zip(ctx.rows, ctx.shapes, strict=True)):
            if kept is not None:
                of_parameters[i] = sparse_rows(kept, of_parameters[i], shape)
        return None, None, None, None, None, None, *grads[: len(ctx.dtypes)], *of_parameters


def _take(tensors: Sequence[Tensor], blocks: list[ColumnBlock]) -> list[WeightAndBias]:
    return [(tensors[w], tensors[b]) if rows is None else (tensors[w][rows], tensors[b][rows]) for w, b, rows in blocks]


def _gradient_of(block: ColumnBlock, grads: Sequence[Tensor], rows: Sequence[Tensor | None]) -> BlockGradient:
    """Where the gradient of a block is written to; `rows` as in `_TotalLoss.forward`."""
    weight, bias, columns = block
    kept = rows[weight]
    if kept is None:
        return BlockGradient(*_take(grads, [block])[0])
    if columns is None:
        return BlockGradient(grads[weight], grads[bias], kept)
    begin, end = torch.searchsorted(kept, kept.new_tensor([columns.start, columns.stop])).tolist()
    return BlockGradient(grads[weight][begin:end], grads[bias][columns], kept[begin:end] - columns.start)
