"""Learned relative positions (Shaw et al. 2018).

Shapes: B batch, L layers, T queries, K keys, N heads, H head width, R distances.
"""

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.positions.distances import count_distances, scores_of_distances
from txl.model.positions.scheme import Encoding, PositionKeys, PositionScheme


class ShawPositions(PositionScheme):
    """score = ((q + u) k_j + q e_d + b_d) / sqrt(H), with a learned key e and bias b per distance, head and layer.

    Distances beyond the tables share their first rows.
    """

    differs_by_layer = True

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__(model, max_distances)
        shape = (model.n_layer, max_distances, model.n_head)
        self.distance_key = nn.Parameter(torch.zeros(*shape, model.d_head))  # rows by descending distance
        self.distance_bias = nn.Parameter(torch.zeros(shape))
        self.content_bias = nn.Parameter(torch.zeros(model.n_layer, model.n_head, model.d_head))  # u

    def distances(self, K: int, geometry: Geometry) -> int:
        """R, the number of distances that are told apart among K keys."""
        rows = self.distance_key.shape[1]
        clamp = min(geometry.clamp_len, rows) if geometry.clamp_len > 0 else rows
        return count_distances(K, geometry, clamp - 1)

    def encode(self, K: int, geometry: Geometry, like: Tensor) -> Encoding:
        """The rows of both tables that are used: [L, R, N, H] and [L, R, N]."""
        R = self.distances(K, geometry)
        return self.distance_key[:, -R:], self.distance_bias[:, -R:]

    def keys(self, layer: int, encoding: Encoding, projection: nn.Module | None) -> PositionKeys:
        """Keys [N, H, R] and biases [N, 1, R] of one layer."""
        key, bias = encoding
        return key[layer].permute(1, 2, 0), bias[layer].t()[:, None]

    def transform(
        self, layer: int, query: Tensor, key: Tensor, position_keys: PositionKeys, ring_offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """query + u, and the key as it is; see `PositionScheme.transform`."""
        return query + self.content_bias[layer][:, None], key

    def score(self, layer: int, query: Tensor, position_keys: PositionKeys) -> Tensor:
        """(query e_d + b_d) / sqrt(H): [B, N, T, R]."""
        key, bias = (part * query.shape[-1] ** -0.5 for part in position_keys)
        scores: Tensor = scores_of_distances(query, key) + bias
        return scores
