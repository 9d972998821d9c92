"""Absolute sinusoids, added to the embedding (Vaswani et al. 2017).

Shapes: B batch, T queries, K keys, D model width.
"""

from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.positions.distances import descending_distances, sinusoid
from txl.model.positions.scheme import Encoding, PositionKeys, PositionScheme


class AddedPositions(PositionScheme):
    """Base of the schemes that add positions to a layer's input. The score does not depend on the distance.

    A position is counted back from the newest token. Memories are kept *without* positions. They are added to the
    memory and the segment alike, so every token has exactly one position, and the right one. (The reference adds them
    to remembered states again and again, in place.)
    """

    adds_to_input = True

    def distances(self, K: int, geometry: Geometry) -> int:
        """0: there are no position keys."""
        return 0

    def encode(self, K: int, geometry: Geometry, like: Tensor) -> Encoding:
        """Nothing."""
        return ()

    def score(self, layer: int, query: Tensor, position_keys: PositionKeys) -> Tensor:
        """Zeros [1, 1, T, 1]."""
        return query.new_zeros(1, 1, query.shape[2], 1)


class AbsolutePositions(AddedPositions):
    """Sinusoids of the position, added to the first layer's input (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__(model, max_distances)
        self.d_model = model.d_model

    def add_to_input(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        """The first layer's memory and segment [B, K, D] -> the same with positions."""
        if layer > 0:
            return context
        distance = descending_distances(context.shape[1], context)
        if geometry.clamp_len > 0:
            distance = distance.clamp(max=geometry.clamp_len)
        return context + sinusoid(distance, self.d_model)
