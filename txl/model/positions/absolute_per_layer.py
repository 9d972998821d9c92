"""Learned absolute positions, added at every layer (Al-Rfou et al. 2018).

Shapes: B batch, L layers, K keys, D model width.
"""

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.positions.absolute import AddedPositions


class AbsolutePerLayerPositions(AddedPositions):
    """A learned vector for every position and layer, added to each layer's input.

    Positions beyond the table share its first row.
    """

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__(model, max_distances)
        # [L, max_distances, D], rows by descending distance from the newest token
        self.table = nn.Parameter(torch.zeros(model.n_layer, max_distances, model.d_model))

    def add_to_input(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        """A layer's memory and segment [B, K, D] -> the same with positions."""
        K, table = context.shape[1], self.table[layer]
        missing = max(0, K - len(table))
        return context + torch.cat([table[:1].expand(missing, -1), table[-K:]])
