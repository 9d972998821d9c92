"""The paper's relative positions (Dai et al. 2019, section 3.3).

Shapes: B batch, T queries, K keys, N heads, H head width, D model width, R distances.
"""

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.dropout import Dropout
from txl.model.positions.distances import count_distances, descending_distances, scores_of_distances, sinusoid
from txl.model.positions.scheme import Encoding, PositionKeys, PositionScheme


class RelativePositions(PositionScheme):
    """score = ((q + u) k_j + (q + w) W_r s(d)) / sqrt(H), with sinusoids s(d) of the distance d."""

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__(model, max_distances)
        pairs = model.n_layer if model.untie_r else 1
        self.d_model, self.differs_by_layer = model.d_model, model.untie_r
        self.content_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # u
        self.position_bias = nn.Parameter(torch.zeros(pairs, model.n_head, model.d_head))  # w
        self.dropout = Dropout(model.dropout)

    def distances(self, K: int, geometry: Geometry) -> int:
        """R, the number of distances that are told apart among K keys."""
        return count_distances(K, geometry, geometry.clamp_len if geometry.clamp_len > 0 else -1)

    def encode(self, K: int, geometry: Geometry, like: Tensor) -> Encoding:
        """s(d) of every distance that is told apart: [R, D]."""
        distance = descending_distances(self.distances(K, geometry), self.content_bias)
        return (self.dropout(sinusoid(distance, self.d_model)),)

    def keys(self, layer: int, encoding: Encoding, projection: nn.Module | None) -> PositionKeys:
        """W_r s(d) of one layer: [N, H, R]."""
        assert projection is not None
        n_head, d_head = self.content_bias.shape[1:]
        projected: Tensor = projection(encoding[0]).unflatten(-1, (n_head, d_head))
        return (projected.permute(1, 2, 0),)

    def transform(
        self, layer: int, query: Tensor, key: Tensor, position_keys: PositionKeys, ring_offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """query + u, and the key as it is; see `PositionScheme.transform`."""
        return query + self.content_bias[self._pair(layer)][:, None], key

    def score(self, layer: int, query: Tensor, position_keys: PositionKeys) -> Tensor:
        """(query + w) W_r s(d) / sqrt(H): [B, N, T, R]."""
        (keys,) = position_keys
        w = self.position_bias[self._pair(layer)][:, None]
        # The keys are the smallest of the tensors that could be divided by sqrt(H).
        return scores_of_distances(query + w, keys * query.shape[-1] ** -0.5)

    def _pair(self, layer: int) -> int:
        return layer if len(self.content_bias) > 1 else 0
