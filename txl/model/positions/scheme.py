"""What a positional scheme is: the interface that layers, cached inference and programs use.

Shapes: B batch, T queries, M memory, K = M + T keys, N heads, H head width, D model width, R distances.
"""

import importlib
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig

Encoding = tuple[Tensor, ...]  # the distances of one segment, encoded; the same for all layers
PositionKeys = tuple[Tensor, ...]  # those of one layer: [..., R], columns by descending distance


class PositionScheme(nn.Module, ABC):
    """How a model knows where a token stands.

    For each segment the model calls `encode` once. Each layer then calls `add_to_input` (only if `adds_to_input`),
    `keys`, `transform` and `score`. Cached inference computes `keys` once, for as many keys as it will ever see, and
    passes on the last `distances(K, geometry)` columns.

    `facts` are those of txl/config/model.py: the number of parameters, whether a layer projects distances (W_r),
    whether its keys may be cached, and what the scheme does not work with.
    """

    adds_to_input = False
    differs_by_layer = False  # whether `keys`, `transform` or `score` depend on the layer

    def __init__(self, model: ModelConfig, max_distances: int):
        """Make the parameters, filled with zeros.

        Args:
            model: the architecture.
            max_distances: rows of learned tables, one per distance.
        """
        super().__init__()
        self.facts = model.positions.facts

    def add_to_input(self, layer: int, context: Tensor, geometry: Geometry) -> Tensor:
        """A layer's memory and segment [B, K, D] -> the same with positions."""
        return context

    @abstractmethod
    def distances(self, K: int, geometry: Geometry) -> int:
        """R, the number of columns of the position keys for K keys."""

    @abstractmethod
    def encode(self, K: int, geometry: Geometry, like: Tensor) -> Encoding:
        """Encode the distances among K keys, in the dtype and on the device of `like`."""

    def keys(self, layer: int, encoding: Encoding, projection: nn.Module | None) -> PositionKeys:
        """The position keys of one layer. `projection` is the layer's W_r, if the scheme has one."""
        return encoding

    def transform(
        self, layer: int, query: Tensor, key: Tensor, position_keys: PositionKeys, ring_offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys of the content score.

        Args:
            layer: index of the layer.
            query: [B, N, T, H], of the T newest tokens.
            key: [B, N, K, H].
            position_keys: what `keys` returned for this layer and K keys.
            ring_offset: key j is the one of column (j + ring_offset) mod K, for keys in a ring buffer.

        Returns:
            Query and key of the same shapes.
        """
        return query, key

    @abstractmethod
    def score(self, layer: int, query: Tensor, position_keys: PositionKeys) -> Tensor:
        """The positional score, divided by sqrt(H).

        Args:
            layer: index of the layer.
            query: [B, N, T, H], before `transform`.
            position_keys: what `keys` returned for this layer.

        Returns:
            [B, N, T, R'] or a shape that broadcasts to it, columns by descending distance. Distances of R' and more
            have the score of the first column; so R' is 1 if the score is the same for all distances.
        """


class SegmentPositions(NamedTuple):
    """What all layers know of the positions in one segment."""

    scheme: PositionScheme
    encoding: Encoding  # what `scheme.encode` returned
    window: int | None  # largest distance that a query sees (same_length); None for all


def build_positions(model: ModelConfig, max_distances: int) -> PositionScheme:
    """The scheme that `model.positions` names: class SomeNamePositions of txl/model/positions/some_name.py."""
    name = model.positions.name
    module = importlib.import_module(f"txl.model.positions.{name}")
    scheme: type[PositionScheme] = getattr(module, name.title().replace("_", "") + "Positions")
    return scheme(model, max_distances)


def attention_window(geometry: Geometry) -> int | None:
    """Largest distance that a query sees; None for all."""
    return geometry.mem_len if geometry.same_length else None
