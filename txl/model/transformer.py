"""Transformer-XL (Dai et al. 2019): a transformer language model that remembers.

Shapes: B batch, T segment, M memory, K = M + T, D model width, V vocabulary. Everything is batch-major.

A text is read in segments. What each layer saw of the last segments, its *memory*, is given to that layer again,
without gradient, as further keys and values: n layers reach n times as far back as one. Distances between tokens
(not positions) enter the attention, so that a state means the same when it is remembered (see attention.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend, ModelConfig
from txl.model.adaptive_embedding import AdaptiveEmbedding
from txl.model.adaptive_softmax import AdaptiveSoftmax
from txl.model.attention import Attention
from txl.model.clusters import Groups
from txl.model.dropout import Dropout
from txl.model.linear import Linear
from txl.model.positions import SCHEMES, window_of

Mems = list[Tensor]  # per layer [B, M, D]: what it read before; an empty list at the start of a text


class FeedForward(nn.Module):
    """LN(x + W2 relu(W1 x)), position by position."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.inner = Linear(model.d_model, model.d_inner)
        self.outer = Linear(model.d_inner, model.d_model)
        self.norm = nn.LayerNorm(model.d_model)
        self.dropout = Dropout(model.dropout)
        self.pre_lnorm = model.pre_lnorm

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.inner(self.norm(x) if self.pre_lnorm else x).relu())
        out = x + self.dropout(self.outer(inner))
        return out if self.pre_lnorm else self.norm(out)


class Layer(nn.Module):
    def __init__(self, model: ModelConfig, backend: AttentionBackend):
        super().__init__()
        self.attention = Attention(model, backend)
        self.feed_forward = FeedForward(model)

    def forward(self, h: Tensor, memory: Tensor, layer: int, positions, encoding, window) -> Tensor:
        return self.feed_forward(self.attention(h, memory, layer, positions, encoding, window))


class TransformerXL(nn.Module):
    """The language model: ids -> hidden states and new memories; hidden states and targets -> losses.

    `max_distances`: rows of the learned position tables (`shaw`, `absolute_per_layer`); the training's
    tgt_len + ext_len + mem_len. The other schemes know no such limit. `recompute`: in training, keep only the inputs
    of layers and compute their insides again in the backward pass: less memory, a third more work (Chen et al. 2016).
    """

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        cutoffs: list[int],
        max_distances: int,
        backend: AttentionBackend = AttentionBackend.eager,
        recompute: bool = False,
    ):
        super().__init__()
        self.recompute = recompute
        cutoffs = cutoffs if model.adaptive else []
        d_embed = model.d_embed or model.d_model
        shape = (vocab_size, cutoffs, d_embed, model.d_model, model.div_val)
        self.embedding = AdaptiveEmbedding(*shape)
        self.positions = SCHEMES[model.positions.value](model, max_distances)
        self.layers = nn.ModuleList(Layer(model, backend) for _ in range(model.n_layer))
        self.softmax = AdaptiveSoftmax(*shape, model.tie_weight, model.tie_projs)
        self.dropout = Dropout(model.dropout)
        self.embedding.sparse_gradient = model.tie_weight and model.div_val == 1
        self.vocab_size, self.d_model = vocab_size, model.d_model
        self.compiled: Callable | None = None
        initialise(self, model)

    def compile_layers(self, backend: str | Callable = "inductor") -> None:
        """From now on full training segments run through torch.compile: one program, which all layers share.

        All others (validation, the first segments of a text, the last one of an epoch) stay as they are: their lengths
        vary, and each would be another program.
        """
        self.compiled = torch.compile(run_layer, backend=backend)
        for layer in self.layers:
            layer.attention.fused = torch.compiler.disable(layer.attention.fused)  # compiled already, and not by this

    def forward(self, input: Tensor, mems: Mems, geometry: Geometry) -> tuple[Tensor, Mems]:
        """input [B, T], mems: n_layer tensors [B, M, D] or none -> hidden [B, T, D], new mems.

        T is ext_len + tgt_len: the extended context is read again before the tokens to predict.
        """
        T = input.shape[1]
        M = mems[0].shape[1] if mems else 0
        h = self.dropout(self.embedding(input))
        window = window_of(geometry)
        encoding = self.positions.encode(M + T, geometry)
        full = self.training and (geometry.mem_len, geometry.tgt_len + geometry.ext_len) == (M, T)
        run = self.compiled if self.compiled is not None and full else run_layer
        new_mems = []
        for i, layer in enumerate(self.layers):
            memory = mems[i] if M else h[:, :0]
            new_mems.append(remember(memory, h, geometry))
            if self.positions.adds_to_input:
                context = self.positions.add(i, torch.cat([memory, h], dim=1), geometry)
                memory, h = context[:, :M], context[:, M:]
            if self.recompute and self.training:
                h = checkpoint(run, layer, h, memory, i, self.positions, encoding, window, use_reentrant=False)
            else:
                h = run(layer, h, memory, i, self.positions, encoding, window)
        return self.dropout(h), new_mems if geometry.mem_len else []

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """hidden [B, T', D], target [B, T] with T' >= T (the last T count) -> nats [B, T]."""
        hidden = hidden[:, -target.shape[1] :]
        loss = self.softmax(hidden.flatten(0, 1), target.flatten(), self.embedding)
        return loss.view_as(target)

    def total_loss(
        self, hidden: Tensor, target: Tensor, scale: float = 1.0, groups: Groups | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `loss`, summed, faster and in bounded memory -> scale * nats, and nats without gradient (adaptive.py)."""
        hidden = hidden[:, -target.shape[1] :]
        return self.softmax.total(hidden.flatten(0, 1), target.flatten(), self.embedding, scale, groups)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """hidden [n, D] -> log-probabilities [n, V] of the next token."""
        return self.softmax.log_prob(hidden, self.embedding)


def run_layer(layer: Layer, *inputs) -> Tensor:
    """What is compiled: a function, so that its program belongs to no layer in particular."""
    return layer(*inputs)


def remember(memory: Tensor, h: Tensor, geometry: Geometry) -> Tensor:
    """memory [B, M, D], segment h [B, T, D] -> the mem_len positions that end ext_len before the segment does."""
    T, h = h.shape[1], h.detach()
    end = T - min(T, geometry.ext_len)
    begin = end - geometry.mem_len
    if begin >= 0:
        return h[:, begin:end]
    return torch.cat([memory[:, begin:].detach(), h[:, :end]], dim=1)


@torch.no_grad()
def initialise(model: TransformerXL, config: ModelConfig) -> None:
    """All initial values, in one place.

    Weights, embeddings and the attention biases u and w: N(0, init_std) or U(-init_range, init_range); projections
    N(0, proj_init_std); LayerNorm gain N(1, init_std); every other bias 0.
    """

    def draw(weight: Tensor, kind=config.init, bound: float = config.init_range) -> None:
        if kind.value == "uniform":
            weight.uniform_(-bound, bound)
        else:
            weight.normal_(0.0, config.init_std)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.normal_(1.0, config.init_std)
            module.bias.zero_()
    for name, parameter in model.positions.named_parameters():
        if name != "distance_bias":
            draw(parameter)
    if model.softmax.clusters.n_tails:
        draw(model.softmax.cluster_weight)
    for weight in model.softmax.weights:
        draw(weight)
    for table in model.embedding.tables:
        draw(table, config.emb_init, config.emb_init_range)
    for projection in [*model.embedding.projections, *model.softmax.projections.values()]:
        projection.normal_(0.0, config.proj_init_std)
