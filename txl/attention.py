"""Attention that knows distances: the four positional schemes and the one attention they all use.

Shapes: B batch, T queries, M memory, K = M + T keys, N heads, H head width, D model width, R distances.

The score of query i for key j depends on their distance d = i + M - j. A scheme computes its term once per
*distance*, as `by_distance [B, N, T, R]` whose columns stand in falling order (R-1, ..., 1, 0);
`by_key` turns that into one column per *key* without computing anything twice.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txl.choices import Arithmetic, AttentionBackend
from txl.config import Geometry, ModelConfig
from txl.dropout import Dropout, dropout
from txl.errors import ConfigError
from txl.product import Linear, linear


def by_key(by_distance: Tensor, K: int, window: int | None) -> Tensor:
    """Scores per distance -> scores per key, with -inf where a query may not look.

    by_distance [B, N, T, R], columns by falling distance; distances of R and more share the first column
    (this is clamping). `window`: largest distance that may be seen (`same_length`), None for all.
    Returns [B, N, T, K].

    Append T - 1 columns for the negative distances (the future) and read the rows as one long vector:
    row i of the result begins one element earlier than row i of the input, relative to its start. So the
    shift of Transformer-XL (appendix B) is a view, and the causal mask comes with it.
    """
    B, N, T, R = by_distance.shape
    blocked = 0 if window is None else max(0, K - 1 - window)
    clamped = K - blocked - R
    assert clamped >= 0, "more distances than keys"
    forbidden = by_distance.new_full((1, 1, 1, 1), -math.inf)
    row = torch.cat(
        [
            forbidden.expand(B, N, T, blocked),
            by_distance[..., :1].expand(B, N, T, clamped),
            by_distance,
            forbidden.expand(B, N, T, T - 1),
        ],
        dim=-1,
    )  # [B, N, T, K + T - 1]
    if T == 1:
        return row
    width = K + T - 2  # one less than the row: every row begins one column further left
    return row.flatten(-2)[..., T - 1 : T - 1 + T * width].unflatten(-1, (T, width))[..., :K]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    dropatt: float,
    backend: AttentionBackend = AttentionBackend.eager,
    turn: int = 0,
) -> Tensor:
    """softmax(query key^T / sqrt(H) + bias) value.

    query [B, N, T, H], key and value [B, N, K, H], bias [B, N, T, K] (or broadcast) -> [B, N, T, H].
    `turn`: key j is the one of column j + turn of the bias, counted round (inference.py: keys in a ring).
    """
    if backend is AttentionBackend.sdpa:
        bias = bias.roll(-turn, -1) if turn else bias
        return F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropatt)
    score = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if turn:
        score[..., :-turn] += bias[..., turn:]
        score[..., -turn:] += bias[..., :turn]
    else:
        score += bias
    probability = score.softmax(dim=-1, dtype=score.dtype)  # which autocast would widen, to keep twice as much
    return dropout(probability, dropatt) @ value


def choose_backend(wanted: AttentionBackend, device: torch.device, arithmetic: Arithmetic) -> AttentionBackend:
    """What computes attention on this device. ConfigError for triton where it cannot run.

    `auto`: the fused kernel where tensor cores serve it (GPUs since Ampere, all but fp32 and fp64), else eager.
    """
    here = importlib.util.find_spec("triton") is not None
    if wanted is AttentionBackend.triton and not (here and device.type == "cuda"):
        missing = "triton, which is not installed" if device.type == "cuda" else "a GPU"
        raise ConfigError(f"attention=triton needs {missing}; use attention=auto")
    if wanted is not AttentionBackend.auto:
        return wanted
    fits = device.type == "cuda" and here and arithmetic not in (Arithmetic.fp32, Arithmetic.fp64)
    new = fits and torch.cuda.get_device_capability(device) >= (8, 0)
    return AttentionBackend.triton if new else AttentionBackend.eager


def fused(query: Tensor, key: Tensor, value: Tensor, by_distance: Tensor, window: int | None, dropatt: float) -> Tensor:
    """`by_key` and `attend` in one Triton kernel, which holds neither scores nor probabilities -> [B, N, T, H]."""
    from txl.kernels.relative_attention import relative_attention

    return relative_attention(query, key, value, by_distance, window, dropatt)


def by_head(query: Tensor, keys: Tensor) -> Tensor:
    """query [B, N, T, H], keys [N, H, R] that all texts share -> [B, N, T, R].

    One product per head for all texts at once: broadcasting would copy the keys B times.
    """
    B, _, T, _ = query.shape
    return (query.transpose(0, 1).flatten(1, 2) @ keys).unflatten(1, (B, T)).transpose(0, 1)


def reach(K: int, geometry: Geometry, clamp: int) -> int:
    """How many distances differ: 0 ... reach - 1. `clamp`: the largest distance told apart, -1 for all."""
    furthest = K - 1
    if clamp >= 0:
        furthest = min(furthest, clamp)
    if geometry.same_length:
        furthest = min(furthest, geometry.mem_len)
    return furthest + 1


def window_of(geometry: Geometry) -> int | None:
    return geometry.mem_len if geometry.same_length else None


def sinusoid(distance: Tensor, d_model: int) -> Tensor:
    """s(d) = [sin(d w), cos(d w)], w_i = 10000^(-2i/D) (Vaswani et al. 2017, section 3.5).

    distance [R] -> [R, D], in the distance's dtype.
    """
    # The frequencies are float32 numbers in the reference's checkpoints, also when it computes in float64.
    exponent = torch.arange(0.0, d_model, 2.0, dtype=torch.float32, device=distance.device) / d_model
    angle = distance[:, None] * (1 / 10000**exponent).to(distance.dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def falling(count: int, like: Tensor) -> Tensor:
    """count - 1, ..., 1, 0 in the dtype and on the device of `like`."""
    return torch.arange(count - 1, -1, -1, dtype=like.dtype, device=like.device)


class RelativePositions(nn.Module):
    """The paper's scheme (section 3.3): ((q + u) k_j + (q + w) W_r s(d)) / sqrt(H)."""

    adds_to_input = False

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        pairs = model.n_layer if model.untie_r else 1
        self.d_model = model.d_model
        self.content_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # u
        self.position_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # w
        self.dropout = Dropout(model.dropout)

    def encode(self, K: int, geometry: Geometry) -> Tensor:
        """s(d) for every distance that differs: [R, D], shared by all layers."""
        distance = falling(self.distances(K, geometry), self.content_bias)
        return self.dropout(sinusoid(distance, self.d_model))

    def distances(self, K: int, geometry: Geometry) -> int:
        """How many distances differ among K keys."""
        return reach(K, geometry, geometry.clamp_len if geometry.clamp_len > 0 else -1)

    def keys(self, layer: int, encoding: Tensor, projection: nn.Linear) -> Tensor:
        """W_r s(d) of one layer: [N, H, R]."""
        n_head, d_head = self.content_bias.shape[1:]
        return projection(encoding).unflatten(-1, (n_head, d_head)).permute(1, 2, 0)

    def score(self, layer: int, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """query [B, N, T, H], keys [N, H, R] -> query for the content term; by_distance [B, N, T, R] over sqrt(H)."""
        pair = layer if len(self.content_bias) > 1 else 0
        u, w = self.content_bias[pair][:, None], self.position_bias[pair][:, None]
        return query + u, by_head(query + w, keys * query.shape[-1] ** -0.5)  # here it is cheapest


class ShawPositions(nn.Module):
    """A learned key and bias for every distance and layer (Shaw et al. 2018): (q + u) k_j + q e_d + b_d."""

    adds_to_input = False

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        shape = (model.n_layer, max_distances, model.n_head)
        self.distance_key = nn.Parameter(torch.zeros(*shape, model.d_head))  # rows by falling distance
        self.distance_bias = nn.Parameter(torch.zeros(shape))
        self.content_bias = nn.Parameter(torch.zeros(model.n_layer, model.n_head, model.d_head))

    def encode(self, K: int, geometry: Geometry) -> int:
        """How many rows of the tables are needed; further distances share the first of them."""
        return self.distances(K, geometry)

    def distances(self, K: int, geometry: Geometry) -> int:
        """How many distances differ among K keys."""
        rows = self.distance_key.shape[1]
        clamp = min(geometry.clamp_len, rows) if geometry.clamp_len > 0 else rows
        return reach(K, geometry, clamp - 1)

    def keys(self, layer: int, encoding: int, projection: None) -> tuple[Tensor, Tensor]:
        """Keys [N, H, R] and biases [N, 1, R]."""
        key = self.distance_key[layer, -encoding:].permute(1, 2, 0)
        return key, self.distance_bias[layer, -encoding:].t()[:, None]

    def score(self, layer: int, query: Tensor, keys: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        key, bias = (part * query.shape[-1] ** -0.5 for part in keys)
        return query + self.content_bias[layer][:, None], by_head(query, key) + bias


class _AddedPositions(nn.Module):
    """Positions that are added to a layer's input: the score knows no distances, only who may look where.

    A position is counted back from the newest token. Memories are kept *without* positions, which are added to
    memory and segment alike: every token gets exactly one, and it is right. (The reference adds them to remembered
    states again and again, in place.)
    """

    adds_to_input = True

    def encode(self, K: int, geometry: Geometry) -> int:
        return reach(K, geometry, -1)

    def keys(self, layer: int, encoding: int, projection: None) -> int:
        return encoding

    def score(self, layer: int, query: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        return query, query.new_zeros(1, 1, query.shape[2], keys)


class AbsolutePositions(_AddedPositions):
    """Sinusoids, added to the first layer's input (Vaswani et al. 2017)."""

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        self.d_model = model.d_model

    def add(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        """Memory and segment [B, K, D] -> the same with positions."""
        if layer > 0:
            return context
        distance = falling(context.shape[1], context)
        if geometry.clamp_len > 0:
            distance = distance.clamp(max=geometry.clamp_len)
        return context + sinusoid(distance, self.d_model)


class AbsolutePerLayerPositions(_AddedPositions):
    """A learned vector for every position and layer, added to each layer's input (Al-Rfou et al. 2018).

    Positions beyond the table share its first row.
    """

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(model.n_layer, max_distances, model.d_model))  # falling

    def add(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        K, table = context.shape[1], self.table[layer]
        missing = max(0, K - len(table))
        return context + torch.cat([table[:1].expand(missing, -1), table[-K:]])


SCHEMES = {
    "relative": RelativePositions,
    "shaw": ShawPositions,
    "absolute": AbsolutePositions,
    "absolute_per_layer": AbsolutePerLayerPositions,
}


class Attention(nn.Module):
    """Multi-head attention of a segment over memory and itself, with residual connection and LayerNorm."""

    def __init__(self, model: ModelConfig, backend: AttentionBackend = AttentionBackend.eager):
        super().__init__()
        self.backend, self.fused = backend, fused
        self.n_head, self.d_head = model.n_head, model.d_head
        self.pre_lnorm, self.dropatt = model.pre_lnorm, model.dropatt
        width = model.n_head * model.d_head
        self.qkv = Linear(model.d_model, 3 * width, bias=False)  # one tensor: LAMB's ratio is per tensor
        self.output = Linear(width, model.d_model, bias=False)
        relative = model.positions.value == "relative"
        self.position = Linear(model.d_model, width, bias=False) if relative else None  # W_r
        self.norm = nn.LayerNorm(model.d_model)
        self.dropout = Dropout(model.dropout)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The segment [B, T, D] -> queries, keys and values [B, N, T, H]."""
        query, key, value = self.qkv(h).chunk(3, dim=-1)
        return self._heads(query), self._heads(key), self._heads(value)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, D] -> keys and values [B, N, M, H]. Remembered positions ask nothing."""
        weight = self.qkv.weight[self.n_head * self.d_head :]
        key, value = linear(memory, weight).chunk(2, dim=-1)
        return self._heads(key), self._heads(value)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, self.d_head)).transpose(1, 2)

    def forward(self, h: Tensor, memory: Tensor, layer: int, positions: nn.Module, encoding, window: int | None):
        """h [B, T, D]: the segment; memory [B, M, D] -> [B, T, D].

        They are projected apart: no gradient goes into the memory, so none is computed for it.
        """
        query, key, value = self.project(self.norm(h) if self.pre_lnorm else h)
        if memory.shape[1]:
            old_key, old_value = self.project_memory(self.norm(memory) if self.pre_lnorm else memory)
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        keys = positions.keys(layer, encoding, self.position)
        return self.read(h, query, key, value, positions, layer, keys, window)

    def read(
        self,
        h: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions,
        layer: int,
        keys,
        window: int | None,
        mask: Tensor | None = None,
        turn: int = 0,
    ) -> Tensor:
        """h [B, T, D] and its queries [B, N, T, H], keys and values [B, N, K, H], positional keys -> [B, T, D].

        For inference.py: `mask` [K], 0, or -inf for the oldest keys where they do not exist; `turn` as in `attend`.
        """
        query, by_distance = positions.score(layer, query, keys)
        dropatt = self.dropatt if self.training else 0.0
        if self.backend is AttentionBackend.triton:
            assert mask is None and not turn, "programs of fixed shape are made from the eager code"
            out = self.fused(query, key, value, by_distance, window, dropatt)
        else:
            bias = by_key(by_distance, key.shape[2], window)
            if mask is not None:
                bias = bias + mask
            out = attend(query, key, value, bias, dropatt, self.backend, turn)
        out = self.dropout(self.output(out.transpose(1, 2).flatten(-2)))
        return h + out if self.pre_lnorm else self.norm(h + out)
