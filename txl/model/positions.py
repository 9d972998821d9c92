"""Positional schemes: how a model knows where a token stands.

Shapes: B batch, T queries, M memory, K = M + T keys, N heads, H head width, D model width, R distances.
"""

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.dropout import Dropout


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
