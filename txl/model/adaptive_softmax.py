"""Adaptive input embedding and adaptive softmax: frequent words get wide vectors, rare ones narrow.

Grave et al. 2017 (softmax), Baevski & Auli 2019 (input). The vocabulary is ordered by frequency and cut at
`cutoffs` into a head and tail clusters. With `div_val = 1` all share one table; otherwise cluster i has vectors
of width d_embed / div_val^i and an own projection to D.

`AdaptiveSoftmax.forward` is the definition: one loss per token, by autograd. Training takes `total`, the same sum
with its gradient computed in the same pass, a bounded number of logits at a time.

Shapes: n tokens, D model width, V vocabulary, V_i words and d_i width of cluster i, C tail clusters.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.model.adaptive_embedding import AdaptiveEmbedding
from txl.model.clusters import Clusters, Groups
from txl.model.linear import by_onednn, linear

ROWS_AT_ONCE = 2**14  # of a table's gradient, where it is not added in place: 32 MiB of 512 float32 each


LOGITS_AT_ONCE = 2**25  # `total` holds this many logits (or one token's, if those are more): 128 MiB in float32


class AdaptiveSoftmax(nn.Module):
    """Negative log-likelihood of the next token. Column head + C - i of the head's softmax stands for cluster i."""

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
        super().__init__()
        self.clusters = clusters = Clusters(vocab_size, cutoffs, d_embed, div_val)
        spans = [(0, vocab_size)] if div_val == 1 else clusters.spans
        self.biases = nn.ParameterList(torch.zeros(end - begin) for begin, end in spans)
        self.weights = nn.ParameterList()  # empty when they are the embedding's
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

    def weight(self, i: int, embedding: AdaptiveEmbedding) -> Tensor:
        """[V_i, d_i]: the one place where weights are tied."""
        if not len(self.weights):
            return embedding.weight(i)
        begin, end = self.clusters.spans[i]
        return self.weights[i] if len(self.weights) == len(self.clusters.spans) else self.weights[0][begin:end]

    def bias(self, i: int) -> Tensor:
        begin, end = self.clusters.spans[i]
        return self.biases[i] if len(self.biases) > 1 else self.biases[0][begin:end]

    def project(self, hidden: Tensor, i: int, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> [n, d_i]: the one place where projections are tied."""
        own = self.projections[str(i)] if str(i) in self.projections else embedding.projection(i)
        return hidden if own is None else linear(hidden, own.t())

    def head_logits(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> [n, V_0 + C] in float32 or wider."""
        weight, bias = self.weight(0, embedding), self.bias(0)
        if self.clusters.n_tails:
            weight = torch.cat([weight, self.cluster_weight])
            bias = torch.cat([bias, self.cluster_bias])
        return at_least_fp32(linear(self.project(hidden, 0, embedding), weight, bias))

    def tail_logits(self, hidden: Tensor, i: int, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> [n, V_i] of tail cluster i."""
        projected = self.project(hidden, i, embedding)
        return at_least_fp32(linear(projected, self.weight(i, embedding), self.bias(i)))

    def forward(self, hidden: Tensor, target: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D], target [n] -> loss [n] in nats, in the order of the tokens."""
        groups = self.clusters.group(target)
        head_target = self._head_target(target, groups)
        loss = F.cross_entropy(self.head_logits(hidden, embedding), head_target, reduction="none")
        for i, index in enumerate(groups.order.split(groups.sizes)):
            if i > 0 and len(index) > 0:
                logits = self.tail_logits(hidden[index], i, embedding)
                word = target[index] - self.clusters.spans[i][0]
                loss = loss.index_add(0, index, F.cross_entropy(logits, word, reduction="none"))
        return loss

    def _head_target(self, target: Tensor, groups: Groups) -> Tensor:
        """The column of the head's softmax: the word, or its cluster."""
        columns = self.clusters.spans[0][1] + self.clusters.n_tails
        return torch.where(groups.cluster == 0, target, columns - groups.cluster)

    def total(
        self,
        hidden: Tensor,
        target: Tensor,
        embedding: AdaptiveEmbedding,
        scale: float = 1.0,
        groups: Groups | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden [n, D], target [n] -> scale * sum of the losses, and the sum itself in float64 without gradient.

        Never holds more than LOGITS_AT_ONCE logits in float32, and their probabilities. `groups`: of the targets,
        where they were on the host.
        """
        groups = groups or self.clusters.group(target)
        targets, inputs = [self._head_target(target, groups)], [self.project(hidden, 0, embedding)]
        for i, index in enumerate(groups.order.split(groups.sizes)):
            if i > 0:
                targets.append(target[index] - self.clusters.spans[i][0])
                inputs.append(self.project(hidden[index], i, embedding))
        tables = list(self.weights) or embedding.shared_tables()
        parameters, clusters = [*tables, *self.biases], []
        for i, (begin, end) in enumerate(self.clusters.spans):
            rows = slice(begin, end) if len(tables) == 1 else slice(None)
            own = 0 if len(tables) == 1 else i
            clusters.append([(own, len(tables) + own, rows)])
        if self.clusters.n_tails:
            clusters[0].append((len(parameters), len(parameters) + 1, slice(None)))
            parameters += [self.cluster_weight, self.cluster_bias]
        tensors = [*inputs, *parameters]
        if not torch.is_grad_enabled():  # a Function cannot tell, and would compute the gradient for nobody
            tensors = [tensor.detach() for tensor in tensors]
        return _TotalLoss.apply(clusters, targets, scale, *tensors)

    def log_prob(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """hidden [n, D] -> log-probability of every word [n, V]."""
        head = self.head_logits(hidden, embedding).log_softmax(-1)
        shortlist = self.clusters.spans[0][1]
        parts = [head[:, :shortlist]]
        for i in range(1, len(self.clusters.spans)):
            tail = self.tail_logits(hidden, i, embedding).log_softmax(-1)
            parts.append(tail + head[:, -i, None])
        return torch.cat(parts, dim=-1)


def at_least_fp32(logits: Tensor) -> Tensor:
    """Half-precision logits lose the tail of a softmax over 20,000 words."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class _TotalLoss(torch.autograd.Function):
    """Sum of cross entropies over clusters, with the gradient computed while the logits are there.

    `clusters`: per cluster the blocks of its columns, as (index of the weight, index of the bias, rows of both) in
    the parameters. Gradients of blocks are written straight into those of the whole tables: no slice of a table is
    ever filled with zeros and added up.
    """

    @staticmethod
    def forward(ctx, clusters, targets, scale: float, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        inputs, parameters = tensors[: len(clusters)], tensors[len(clusters) :]
        grads = [torch.empty_like(p) for p in parameters] if any(ctx.needs_input_grad) else None
        kind = inputs[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs[0].dtype
        total, input_grads = torch.zeros((), dtype=torch.float64, device=inputs[0].device), []
        with torch.autocast(kind, enabled=False):
            for x, target, blocks in zip(inputs, targets, clusters, strict=True):
                weights = [(parameters[w][rows], parameters[b][rows]) for w, b, rows in blocks]
                into = [(grads[w][rows], grads[b][rows]) for w, b, rows in blocks] if grads else None
                nats, grad = cluster_loss(x.to(dtype), target, weights, into, scale)
                total += nats
                input_grads.append(grad)
        ctx.grads = [*input_grads, *grads] if grads else None
        ctx.dtypes = [x.dtype for x in inputs]
        ctx.mark_non_differentiable(total)
        return (total * scale).to(parameters[0].dtype), total

    @staticmethod
    def backward(ctx, by: Tensor, _) -> tuple:
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "a second backward pass: call total() again"
        if by.device.type != "cpu" or by.item() != 1:  # one more pass over the tables, unless `scale` was the scale
            for grad in grads:
                grad *= by
        for i, dtype in enumerate(ctx.dtypes):
            grads[i] = grads[i].to(dtype)
        return None, None, None, *grads


def cluster_loss(x: Tensor, target: Tensor, weights, grads, scale: float) -> tuple[Tensor, Tensor | None]:
    """One softmax over the columns of all blocks: sum of the losses, and its gradient times `scale`.

    x [n, d] in the dtype of the products, target [n], weights: blocks ([v, d], [v]); grads: tensors alike, which
    are overwritten, or None. Returns nats and the gradient [n, d] of x, which is in float32 or wider.
    """
    weights = [(w.to(x.dtype), b) for w, b in weights]
    wide = at_least_fp32(x[:0]).dtype
    n, columns = len(x), sum(len(w) for w, _ in weights)
    rows = max(1, min(n, LOGITS_AT_ONCE // columns))
    logits = torch.empty(rows, columns, dtype=wide, device=x.device)
    nats = torch.zeros((), dtype=torch.float64, device=x.device)
    grad_x = torch.zeros(x.shape, dtype=wide, device=x.device) if grads else None
    if grads and n == 0:
        for grad in (g for block in grads for g in block):
            grad.zero_()
    for begin in range(0, n, rows):
        part, word = x[begin : begin + rows], target[begin : begin + rows]
        by_block = logits[: len(part)].split([len(w) for w, _ in weights], dim=1)
        for (w, b), out in zip(weights, by_block, strict=True):
            torch.add(linear(part, w), b, out=out)
        probability = logits[: len(part)].log_softmax(-1)
        here = torch.arange(len(part), device=x.device)
        nats -= probability[here, word].sum(dtype=torch.float64)
        if not grads:
            continue
        probability.exp_()
        probability[here, word] -= 1
        parts = zip(weights, grads, probability.split([len(w) for w, _ in weights], dim=1), strict=True)
        for (w, _), (grad_w, grad_b), p in parts:
            add_product(grad_b, None, p, begin > 0, scale)
            p = p.to(x.dtype)
            add_product(grad_w, part, p, begin > 0, scale)
            grad_x[begin : begin + rows].add_(linear(p, w.t()), alpha=scale)
    return nats, grad_x


def add_product(grad: Tensor, x: Tensor | None, p: Tensor, again: bool, scale: float) -> None:
    """grad = scale * p^T x (of p's columns' sums without x), added to what is there from the second time on."""
    if x is not None and x.dtype == grad.dtype and not by_onednn(x):
        grad.addmm_(p.t(), x, beta=float(again), alpha=scale)
        return
    for begin in range(0, len(grad), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        part = p[:, rows].sum(0) if x is None else linear(p[:, rows].t(), x.t())
        if not again:
            grad[rows].zero_()
        grad[rows].add_(part, alpha=scale)
