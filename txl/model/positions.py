"""Positional schemes: how a model knows where a token stands.

Shapes: B batch, T queries, M memory, K = M + T keys, N heads, H head width, D model width, R distances.
"""

from typing import Any

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.dropout import Dropout


def scores_of_distances(query: Tensor, keys: Tensor) -> Tensor:
    """query [B, N, T, H], positional keys [N, H, R], the same for the whole batch -> [B, N, T, R].

    One product per head for the whole batch. Broadcasting would copy the keys B times.
    """
    B, _, T, _ = query.shape
    scores: Tensor = (query.transpose(0, 1).flatten(1, 2) @ keys).unflatten(1, (B, T))
    return scores.transpose(0, 1)


def count_distances(K: int, geometry: Geometry, clamp: int) -> int:
    """R, the number of distances that are told apart among K keys: 0, ..., R - 1.

    `clamp` is the largest distance that is told apart, -1 for all.
    """
    largest = K - 1
    if clamp >= 0:
        largest = min(largest, clamp)
    if geometry.same_length:
        largest = min(largest, geometry.mem_len)
    return largest + 1


def attention_window(geometry: Geometry) -> int | None:
    """Largest distance that a query sees; None for all."""
    return geometry.mem_len if geometry.same_length else None


def sinusoid(distance: Tensor, d_model: int) -> Tensor:
    """s(d) = [sin(d w), cos(d w)], w_i = 10000^(-2i/D) (Vaswani et al. 2017, section 3.5).

    distance [R] -> [R, D], in the distance's dtype.
    """
    # The reference's checkpoints hold the frequencies as float32 numbers, also when it computes in float64.
    exponent = torch.arange(0.0, d_model, 2.0, dtype=torch.float32, device=distance.device) / d_model
    angle = distance[:, None] * (1 / 10000**exponent).to(distance.dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def descending_distances(count: int, like: Tensor) -> Tensor:
    """[count - 1, ..., 1, 0] in the dtype and on the device of `like`."""
    return torch.arange(count - 1, -1, -1, dtype=like.dtype, device=like.device)


class RelativePositions(nn.Module):
    """The paper's scheme (Dai et al. 2019, section 3.3): ((q + u) k_j + (q + w) W_r s(d)) / sqrt(H)."""

    adds_to_input = False

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        pairs = model.n_layer if model.untie_r else 1
        self.d_model = model.d_model
        self.content_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # u
        self.position_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # w
        self.dropout = Dropout(model.dropout)

    def encode(self, K: int, geometry: Geometry) -> Tensor:
        """s(d) of every distance that is told apart: [R, D], shared by all layers."""
        distance = descending_distances(self.distances(K, geometry), self.content_bias)
        encoding: Tensor = self.dropout(sinusoid(distance, self.d_model))
        return encoding

    def distances(self, K: int, geometry: Geometry) -> int:
        """How many distances are told apart among K keys."""
        return count_distances(K, geometry, geometry.clamp_len if geometry.clamp_len > 0 else -1)

    def keys(self, layer: int, encoding: Tensor, projection: nn.Linear) -> Tensor:
        """W_r s(d) of one layer: [N, H, R]."""
        n_head, d_head = self.content_bias.shape[1:]
        keys: Tensor = projection(encoding).unflatten(-1, (n_head, d_head))
        return keys.permute(1, 2, 0)

    def score(self, layer: int, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """query [B, N, T, H], keys [N, H, R] -> query for the content term; by_distance [B, N, T, R] over sqrt(H)."""
        pair = layer if len(self.content_bias) > 1 else 0
        u, w = self.content_bias[pair][:, None], self.position_bias[pair][:, None]
        # The keys are the smallest of the tensors that could be divided by sqrt(H).
        return query + u, scores_of_distances(query + w, keys * query.shape[-1] ** -0.5)


class ShawPositions(nn.Module):
    """A learned key and bias for every distance and layer (Shaw et al. 2018): (q + u) k_j + q e_d + b_d."""

    adds_to_input = False

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        shape = (model.n_layer, max_distances, model.n_head)
        self.distance_key = nn.Parameter(torch.zeros(*shape, model.d_head))  # rows by descending distance
        self.distance_bias = nn.Parameter(torch.zeros(shape))
        self.content_bias = nn.Parameter(torch.zeros(model.n_layer, model.n_head, model.d_head))

    def encode(self, K: int, geometry: Geometry) -> int:
        """How many rows of the tables are used. Larger distances share the first of them."""
        return self.distances(K, geometry)

    def distances(self, K: int, geometry: Geometry) -> int:
        """How many distances are told apart among K keys."""
        rows = self.distance_key.shape[1]
        clamp = min(geometry.clamp_len, rows) if geometry.clamp_len > 0 else rows
        return count_distances(K, geometry, clamp - 1)

    def keys(self, layer: int, encoding: int, projection: None) -> tuple[Tensor, Tensor]:
        """Keys [N, H, R] and biases [N, 1, R] of one layer."""
        key = self.distance_key[layer, -encoding:].permute(1, 2, 0)
        return key, self.distance_bias[layer, -encoding:].t()[:, None]

    def score(self, layer: int, query: Tensor, keys: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """query [B, N, T, H] -> query for the content term; by_distance [B, N, T, R] over sqrt(H)."""
        key, bias = (part * query.shape[-1] ** -0.5 for part in keys)
        return query + self.content_bias[layer][:, None], scores_of_distances(query, key) + bias


class _AddedPositions(nn.Module):
    """Positions that are added to a layer's input. The score does not depend on the distance.

    A position is counted back from the newest token. Memories are kept *without* positions. They are added to the
    memory and the segment alike, so every token has exactly one position, and the right one. (The reference adds them
    to remembered states again and again, in place.)
    """

    adds_to_input = True

    def encode(self, K: int, geometry: Geometry) -> int:
        """How many distances a query sees."""
        return count_distances(K, geometry, -1)

    def keys(self, layer: int, encoding: int, projection: None) -> int:
        """The same for every layer: `encoding`."""
        return encoding

    def score(self, layer: int, query: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """query [B, N, T, H] -> the same query; zeros [1, 1, T, R]."""
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
        distance = descending_distances(context.shape[1], context)
        if geometry.clamp_len > 0:
            distance = distance.clamp(max=geometry.clamp_len)
        return context + sinusoid(distance, self.d_model)


class AbsolutePerLayerPositions(_AddedPositions):
    """A learned vector for every position and layer, added to each layer's input (Al-Rfou et al. 2018).

    Positions beyond the table share its first row.
    """

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__()
        # rows by descending distance
        self.table = nn.Parameter(torch.zeros(model.n_layer, max_distances, model.d_model))

    def add(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        """Memory and segment [B, K, D] -> the same with positions."""
        K, table = context.shape[1], self.table[layer]
        missing = max(0, K - len(table))
        return context + torch.cat([table[:1].expand(missing, -1), table[-K:]])


SCHEMES: dict[str, Any] = {
    "relative": RelativePositions,
    "shaw": ShawPositions,
    "absolute": AbsolutePositions,
    "absolute_per_layer": AbsolutePerLayerPositions,
}
