"""Weights that follow a text (dynamic evaluation): what learns, from which gradients, and by which updates.

Krause et al. 2018 (arXiv:1709.07432) and 2019 (arXiv:1904.08378).

Shapes: B columns, T segment, V vocabulary, d width of the vectors.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from txl.config.adaptation import Adaptation
from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.data.batches import TokenStream
from txl.evaluate.runtimes import Memory
from txl.model.adaptive_embedding import rows_by_table, sparse_rows
from txl.model.transformer import TransformerXL
from txl.optim.without_compiler import without_compiler
from txl.system.distributed import sum_over_ranks
from txl.system.precision import autocast

EPS = 1e-8  # is added to the root mean square of the gradients


class RecentWords:
    """The words among the last tokens that were learnt, counted in whole segments."""

    def __init__(self, vocab_size: int, tokens: int, device: torch.device):
        """Remember nothing yet. `tokens`: how many of a column a word is remembered for."""
        self.tokens = tokens
        self._read = 0  # tokens of a column
        self._until = torch.zeros(vocab_size, dtype=torch.long, device=device)  # up to where a word is remembered

    def read(self, input: Tensor, target: Tensor) -> None:
        """Take the words of a segment [B, T'] and its targets [B, T]; B is 0 in a process without a column."""
        self._read += target.shape[1]
        for words in (input, target):
            self._until[words.flatten()] = self._read + self.tokens

    def ids(self) -> Tensor:
        """The remembered words [n] of all processes, in ascending order. Collective."""
        is_recent = sum_over_ranks((self._until > self._read).long())
        return is_recent.nonzero().flatten()


class DynamicWeights:
    """A model's weights while they follow a text; `restore` gives the trained ones back."""

    def __init__(self, model: TransformerXL, options: Adaptation, roots: list[Tensor] | None):
        """Remember the trained weights.

        Args:
            model: whose weights are changed in place.
            options: rate, decay, what learns, and after how many segments an update comes.
            roots: for `rms`, of every weight: the root mean square of its gradients on the training split.
        """
        self.options, self._model = options, model
        self._weights = learning_weights(model, options)
        self._trained = [weight.detach().clone() for weight in self._weights]
        self._segments = 0  # since the last update
        self._words: RecentWords | None = None
        self._rows: dict[Tensor, Tensor] = {}  # of each table whose vectors learn with their words: the present rows
        tables: set[Tensor] = set()
        if options.dynamic_words is not None:
            self._words = RecentWords(model.vocab_size, options.dynamic_words, self._weights[0].device)
            tables = {*model.embedding.tables, *model.softmax.weights}
        self._decays = [torch.tensor(options.decay)] * len(self._weights)
        self._squares: dict[Tensor, Tensor] = {}  # for `rms`, of every weight: the mean square of its gradients
        dense = [weight for weight in self._weights if weight not in tables]
        if roots is None:
            self._optimizer: torch.optim.Optimizer = without_compiler(torch.optim.SGD)(dense, options.rate, fused=True)
            return
        of_weight: dict[Tensor, Tensor] = dict(zip(model.parameters(), roots, strict=True))
        self._squares = {weight: of_weight[weight].square() for weight in self._weights}
        self._optimizer = rms_from(dense, [self._squares[weight] for weight in dense], options)
        if options.decay:  # weights with large gradients are also pulled back more, as in the paper
            roots = [of_weight[weight] for weight in self._weights]
            mean = torch.cat([root.flatten() for root in roots]).mean()
            self._decays = [(options.decay * root / mean).clamp(max=1) for root in roots]

    def words_to_learn(self, input: Tensor, target: Tensor) -> Tensor | None:
        """Take the words of a segment [B, T'] and its targets [B, T]; returns the words whose vectors learn from it.

        They are [w] in ascending order; None: all. Collective.
        """
        if self._words is None:
            return None
        self._words.read(input, target)
        ids = self._words.ids()
        for tables in (self._model.embedding.tables, self._model.softmax.weights):
            self._rows.update(zip(tables, rows_by_table(ids, tables), strict=True))
        return ids

    def learn(self, total: Tensor | None) -> None:
        """Take the gradient of a segment's loss, and update after every `dynamic_segments`-th. Collective.

        `total`: of this process's columns, such that those of all processes and `dynamic_segments` segments add up to
        a mean over tokens; None: it has no column.
        """
        if total is not None:
            total.backward()
        self._segments += 1
        if self._segments == self.options.dynamic_segments:
            self._update()
            self._segments = 0

    @torch.no_grad()
    def _update(self) -> None:
        for weight, trained, decay in zip(self._weights, self._trained, self._decays, strict=True):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            if self.options.decay:
                weight.add_(decay.to(weight) * (trained - weight))
            if weight in self._rows:
                rows, weight.grad = rows_of(gradient, self._rows[weight]), None
                sum_over_ranks(rows._values())
                move_rows(weight, rows, self.options, self._squares.get(weight))
            else:
                weight.grad = sum_over_ranks(gradient)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its trained weights back."""
        for weight, trained in zip(self._weights, self._trained, strict=True):
            weight.copy_(trained)
            weight.grad = None


def learning_weights(model: TransformerXL, options: Adaptation) -> list[Tensor]:
    """The weights that learn: all, or all but those of attention. LayerNorm behind attention learns in any case."""
    resting: set[Tensor] = set()
    if not options.dynamic_attention:
        attentions = [layer.attention for layer in model.layers]
        named = [pair for attention in attentions for pair in attention.named_parameters()]
        resting = {weight for name, weight in named if not name.startswith("norm.")}
    return [weight for weight in model.parameters() if weight not in resting]


def rows_of(gradient: Tensor, rows: Tensor) -> Tensor:
    """The gradient of a table as a sparse tensor of these rows.

    One that is sparse already has these rows (`AdaptiveSoftmax.total_loss`).
    """
    if gradient.is_sparse:
        return gradient.coalesce()
    return sparse_rows(rows, gradient[rows], gradient.shape)


def rms_from(weights: Sequence[Tensor], squares: Sequence[Tensor], options: Adaptation) -> torch.optim.Optimizer:
    """Gradient descent, divided by a root mean square that is the training split's at first and then follows the text.

    A word that is rare in training has hardly any gradient there. Its first one in the text counts in its own
    divisor, so it moves its vector by rate / sqrt(1 - beta) at most: far, but not without limit.

    Args:
        weights: what learns.
        squares: of every weight, in the same order: the mean square of its gradients, which is then changed.
        options: rate and beta.

    Returns:
        torch's Adam without momentum, which updates everything in one pass.
    """
    optimizer = without_compiler(torch.optim.Adam)(weights, options.rate, (0.0, options.dynamic_beta), EPS, fused=True)
    for weight, square in zip(weights, squares, strict=True):
        optimizer.state[weight] = {
            "step": torch.full((), 1e9, device=weight.device),  # so that the mean square is that of many steps
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": square,
        }
    return optimizer


def move_rows(table: Tensor, gradient: Tensor, options: Adaptation, square: Tensor | None) -> None:
    """An update of some rows of a table, in place: gradient descent, or that of `rms_from`.

    Args:
        table: [V, d].
        gradient: the same shape, sparse and coalesced.
        options: rate and beta.
        square: [V, d], the mean square of the gradients, whose rows are changed; None: do not divide.
    """
    rows, values = gradient._indices()[0], gradient._values()
    if square is not None:
        mean = square[rows].mul_(options.dynamic_beta).addcmul_(values, values, value=1 - options.dynamic_beta)
        square.index_copy_(0, rows, mean)
        values = values / mean.sqrt_().add_(EPS)
    table.index_add_(0, rows, values, alpha=-options.rate)


def gradient_roots(
    model: TransformerXL, stream: TokenStream, geometry: Geometry, segments: int, precision: Arithmetic
) -> list[Tensor]:
    """The root mean square of every weight's gradient, over segments of the training split. Collective.

    The gradients are those of the mean loss of a segment in all columns, with the trained weights.

    Args:
        model: the weights; they stay as they are.
        stream: this rank's columns of the training split.
        geometry: the lengths to read with.
        segments: how many, spread over the whole split where it has more.
        precision: of the matrix products.

    Returns:
        A tensor of the shape of every parameter, in the order of `model.parameters()`.
    """
    device, parameters = next(model.parameters()).device, list(model.parameters())
    model.eval()
    squares = [torch.zeros_like(weight) for weight in parameters]
    read = list(_spread(stream.n_batches, segments))
    memory: Memory = []
    for index in read:
        if len(stream.columns):
            batch = stream.batch(1, index)
            input, target = batch.input.to(device), batch.target.to(device)
            with autocast(precision, device):
                hidden, memory = model(input, memory, geometry)
                total, _ = model.total_loss(hidden, target, scale=1 / (target.shape[1] * stream.batch_size))
            total.backward()
        for square, weight in zip(squares, parameters, strict=True):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = None
            square.addcmul_(sum_over_ranks(gradient), gradient)
    return [(square / len(read)).sqrt() for square in squares]


def _spread(count: int, wanted: int) -> Iterator[int]:
    """`wanted` of `count` indices, evenly spread; all if there are no more."""
    chosen = min(count, wanted)
    return (i * count // chosen for i in range(chosen))
