"""Rotary positions (RoPE, Su et al. 2021): queries and keys are rotated by an angle that grows with the position.

The product of a rotated query and a rotated key depends on their distance only. So memories need no position of their
own, as with relative positions, and there is nothing to learn.

Positions are counted back from the newest token: it has angle 0, the one before it -w, and so on. A cache therefore
holds keys as they were *before* the rotation, and all keys are rotated for every segment. That costs less than the
scores, angles never exceed the number of keys, however long the stream is, and nothing depends on how much was read
before. The other way, to cache rotated keys, has angles that grow with the stream and lose their last digits.

Shapes: B batch, T queries, K keys, N heads, H head width, J = H / 2 pairs that are rotated.
"""

import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.positions.scheme import Encoding, PositionKeys, PositionScheme

BASE = 10000.0  # the wavelengths go from 2 pi to 2 pi BASE, as those of the sinusoids


class RotaryPositions(PositionScheme):
    """score = R(i) q_i R(j) k_j / sqrt(H), with rotations R by position: a function of the distance i - j."""

    def __init__(self, model: ModelConfig, max_distances: int):
        super().__init__(model, max_distances)
        self.d_head = model.d_head

    def distances(self, K: int, geometry: Geometry) -> int:
        """K: every key has an angle."""
        return K

    def encode(self, K: int, geometry: Geometry, like: Tensor) -> Encoding:
        """Cosines and sines [J, K] of the angles, columns by descending distance from the newest token."""
        # In float64, because an angle of thousands of radians has few exact digits in float32.
        position = torch.arange(1 - K, 1, dtype=torch.float64, device=like.device)
        exponent = torch.arange(0, self.d_head, 2, dtype=torch.float64, device=like.device) / self.d_head
        angle = position[:, None] / BASE**exponent
        # [K, J] in memory, as `transform` reads them
        return angle.cos().to(like.dtype).t(), angle.sin().to(like.dtype).t()

    def transform(
        self, layer: int, query: Tensor, key: Tensor, position_keys: PositionKeys, ring_offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys; see `PositionScheme.transform`."""
        cos, sin = (part.t() for part in position_keys)  # [K, J]
        T = query.shape[2]
        query = _rotate(query, cos[-T:], sin[-T:])
        if ring_offset:
            cos, sin = cos.roll(-ring_offset, 0), sin.roll(-ring_offset, 0)
        return query, _rotate(key, cos, sin)

    def score(self, layer: int, query: Tensor, position_keys: PositionKeys) -> Tensor:
        """Zeros [1, 1, T, 1]: the score of the content knows the distance already."""
        return query.new_zeros(1, 1, query.shape[2], 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_j, x_{j+J}) of x [B, N, T, H] by the angles whose cosines and sines are [T, J]."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.to(x.dtype)  # half-precision x times float32 angles is float32
