"""Transformer-XL (Dai et al. 2019): a transformer language model with a memory.

A text is read in segments of T tokens. Each layer keeps its input of the last M positions, its *memory*. For the next
segment, the layer attends to [memory; segment]: the memory gives further keys and values, without gradient. A layer
so sees M positions back, and n layers on top of each other see n M positions back (section 3.2).

A state that was computed in one segment is used again in later ones. So a state must not depend on where in its
segment it stood. Therefore the attention scores depend on the *distance* between two tokens, not on their positions
(section 3.3; attention.py, positions/):

    q = h W_q     k, v = [m; h] W_k, [m; h] W_v     r_d = W_r s(d)
    score[i, j] = ((q_i + u) k_j + (q_i + w) r_d) / sqrt(H)     with d = i + M - j >= 0
    out = LN(h + softmax(score) v W_o)              then LN(out + W_2 relu(W_1 out))

Shapes: B batch, T segment, M memory, K = M + T, D model width, V vocabulary. Everything is batch-major.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from txl.config.geometry import Geometry
from txl.config.model import Activation, AttentionBackend, Init, ModelConfig
from txl.model.adaptive_embedding import AdaptiveEmbedding
from txl.model.adaptive_softmax import AdaptiveSoftmax
from txl.model.attention import Attention
from txl.model.clusters import TokensByCluster
from txl.model.dropout import Dropout
from txl.model.linear import Linear
from txl.model.positions.scheme import SegmentPositions, attention_window, build_positions

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.relu: torch.relu,
    Activation.gelu: nn.functional.gelu,
}
Mems = list[Tensor]  # per layer, its input at the remembered positions [B, M, D]; an empty list where a text starts


class FeedForward(nn.Module):
    """LN(x + W_2 f(W_1 x)), for each position on its own; f is relu in the paper."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.inner = Linear(model.d_model, model.d_inner)
        self.outer = Linear(model.d_inner, model.d_model)
        self.norm = nn.LayerNorm(model.d_model)
        self.dropout = Dropout(model.dropout)
        self.pre_lnorm = model.pre_lnorm
        self.activation = ACTIVATIONS[model.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        inner = self.dropout(self.activation(self.inner(self.norm(x) if self.pre_lnorm else x)))
        out: Tensor = x + self.dropout(self.outer(inner))
        if not self.pre_lnorm:
            out = self.norm(out)
        return out


class Layer(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, model: ModelConfig, backend: AttentionBackend, is_first: bool):
        super().__init__()
        self.attention = Attention(model, backend, is_first)
        self.feed_forward = FeedForward(model)

    def forward(
        self, h: Tensor, memory: Tensor, layer: int, positions: SegmentPositions, first_value: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the next layer's input.

        Args:
            h: input of this layer for the segment [B, T, D].
            memory: the same for the remembered positions [B, M, D].
            layer: its index, from 0.
            positions: for `Attention.forward`.
            first_value: for `Attention.forward`.

        Returns:
            Output for the segment [B, T, D], and the values that `Attention.forward` hands on.
        """
        attended, value = self.attention(h, memory, layer, positions, first_value)
        return self.feed_forward(attended), value


class TransformerXL(nn.Module):
    """The language model: ids -> hidden states and new memories; hidden states and targets -> losses."""

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        cutoffs: list[int],
        max_distances: int,
        backend: AttentionBackend = AttentionBackend.eager,
        recompute: bool = False,
    ):
        """Build the model with random weights from torch's generator.

        Args:
            model: architecture and initialisation.
            vocab_size: V.
            cutoffs: first word of every cluster but the head, if `model.adaptive`.
            max_distances: rows of the learned position tables (`shaw`, `absolute_per_layer`): training's tgt_len +
                ext_len + mem_len. The other schemes have no such limit.
            backend: what computes attention.
            recompute: in training, keep only the inputs of the layers and compute their insides again in the
                backward pass: less memory, a third more work (Chen et al. 2016).
        """
        super().__init__()
        self.recompute = recompute
        cutoffs = cutoffs if model.adaptive else []
        d_embed = model.d_embed or model.d_model
        shape = (vocab_size, cutoffs, d_embed, model.d_model, model.div_val)
        self.embedding = AdaptiveEmbedding(*shape)
        self.positions = build_positions(model, max_distances)
        layers = nn.ModuleList(Layer(model, backend, is_first=i == 0) for i in range(model.n_layer))
        self.layers = cast(Sequence[Layer], layers)
        self.softmax = AdaptiveSoftmax(*shape, model.tie_weight, model.tie_projs)
        self.dropout = Dropout(model.dropout)
        self.embedding.sparse_gradient = model.tie_weight and model.div_val == 1
        self.vocab_size, self.d_model = vocab_size, model.d_model
        self.compiled: Callable[..., tuple[Tensor, Tensor | None]] | None = None
        self.replays_graphs = False
        initialise_weights(self, model)

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor", graphs: bool = False) -> None:
        """From now on run full training segments through torch.compile: one program, which all layers share.

        Other segments are not compiled: validation, the first segments of a text, the last one of an epoch. Their
        lengths vary, and each length would need a program of its own. What cannot be compiled as a whole raises an
        error: torch would otherwise go on without compiling.

        `graphs`: torch keeps what the program launches on a GPU as CUDA graphs, so that the host has less to do.
        """
        if self.positions.differs_by_layer:  # then every layer has a program of its own
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, 4 * len(self.layers))
        options: dict[str, Any] = {"options": {"triton.cudagraphs": True}} if graphs else {}
        self.compiled = torch.compile(_run_layer, backend=backend, dynamic=False, fullgraph=True, **options)
        self.replays_graphs = graphs

    def forward(self, input: Tensor, mems: Mems, geometry: Geometry) -> tuple[Tensor, Mems]:
        """Read one segment.

        T is ext_len + tgt_len: with an extended context, the segment begins with ext_len tokens of the one before.

        Args:
            input: token ids [B, T].
            mems: n_layer tensors [B, M, D], or an empty list where a text starts.
            geometry: the lengths to read with.

        Returns:
            Hidden states [B, T, D] and the memories for the next segment.
        """
        T = input.shape[1]
        M = mems[0].shape[1] if mems else 0
        h: Tensor = self.dropout(self.embedding(input))
        encoding = self.positions.encode(M + T, geometry, h)
        positions = SegmentPositions(self.positions, encoding, attention_window(geometry))
        full = self.training and (geometry.mem_len, geometry.tgt_len + geometry.ext_len) == (M, T)
        run = self.compiled if self.compiled is not None and full else _run_layer
        replays = self.replays_graphs and run is self.compiled
        if replays:
            torch.compiler.cudagraph_mark_step_begin()
        new_mems, first_value = [], None
        for i, layer in enumerate(self.layers):
            # A program is made for a fixed index, so it is the same for all layers where it makes no difference.
            index = i if self.positions.differs_by_layer else 0
            memory = mems[i] if M else h[:, :0]
            kept = next_memory(memory, h, geometry)
            new_mems.append(kept.clone() if replays else kept)  # the next step's graphs overwrite what these wrote
            if self.positions.adds_to_input:
                context = self.positions.add_to_input(i, torch.cat([memory, h], dim=1), geometry)
                memory, h = context[:, :M], context[:, M:]
            inputs = (layer, h, memory, index, positions, first_value)
            if self.recompute and self.training:
                h, value = checkpoint(run, *inputs, use_reentrant=False)
            else:
                h, value = run(*inputs)
            first_value = value if i == 0 else first_value
        return self.dropout(h), new_mems if geometry.mem_len else []

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """hidden [B, T', D], target [B, T] with T' >= T (the last T positions count) -> nats [B, T]."""
        hidden = hidden[:, -target.shape[1] :]
        loss: Tensor = self.softmax(hidden.flatten(0, 1), target.flatten(), self.embedding)
        return loss.view_as(target)

    def total_loss(
        self,
        hidden: Tensor,
        target: Tensor,
        scale: float = 1.0,
        tokens: TokensByCluster | None = None,
        is_root: bool = False,
        multi_token_weight: float = 0.0,
        words: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of `loss`, faster and in bounded memory (adaptive_softmax.py).

        Args:
            hidden: [B, T', D] with T' >= T; the last T positions count.
            target: [B, T].
            scale: factor on the first result.
            tokens: the targets by cluster, if they were sorted on the host.
            is_root: the backward pass will start at the first result, with a gradient of 1.
            multi_token_weight: the gradients are those of the loss and, times this weight, of the loss of the
                tokens after the next, which the same logits predict (Gloeckle et al. 2024, with one head for both).
            words: as in `AdaptiveSoftmax.total_loss`.

        Returns:
            scale * nats, to start the backward pass from; and nats in float64, without gradient.
        """
        hidden = hidden[:, -target.shape[1] :]
        states, targets = hidden.flatten(0, 1), target.flatten()
        after_next = nn.functional.pad(target[:, 1:], (0, 1), value=-1).flatten() if multi_token_weight else None
        return self.softmax.total_loss(
            states, targets, self.embedding, scale, tokens, is_root, after_next, multi_token_weight, words
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """hidden [n, D] -> log-probabilities [n, V] of the next token."""
        return self.softmax.log_prob(hidden, self.embedding)


def _run_layer(layer: Layer, *inputs: Any) -> tuple[Tensor, Tensor | None]:
    """A function to compile, so that all layers share its program. A compiled method would belong to one layer."""
    out: tuple[Tensor, Tensor | None] = layer(*inputs)
    return out


def next_memory(memory: Tensor, h: Tensor, geometry: Geometry) -> Tensor:
    """memory [B, M, D], segment h [B, T, D] -> the mem_len positions of both that end ext_len before the segment."""
    T, h = h.shape[1], h.detach()
    end = T - min(T, geometry.ext_len)
    begin = end - geometry.mem_len
    if begin >= 0:
        return h[:, begin:end]
    return torch.cat([memory[:, begin:].detach(), h[:, :end]], dim=1)


@torch.no_grad()
def initialise_weights(model: TransformerXL, config: ModelConfig) -> None:
    """Draw all initial weights.

    Weights, embeddings and the attention biases u and w: N(0, init_std) or U(-init_range, init_range). Projections:
    N(0, proj_init_std). LayerNorm gains: N(1, init_std). Every other bias: 0. (`bias_init=unigram` needs the text:
    txl/train/frequency_biases.py.)
    """

    def draw(weight: Tensor, kind: Init = config.init, bound: float = config.init_range) -> None:
        if kind is Init.uniform:
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
