"""Distances between tokens: how many are told apart, sinusoids of them, scores per distance.

Shapes: B batch, T queries, K keys, N heads, H head width, D model width, R distances.
"""

import torch
from torch import Tensor

from txl.config.geometry import Geometry


def count_distances(K: int, geometry: Geometry, clamp: int = -1) -> int:
    """R, the number of distances that are told apart among K keys: 0, ..., R - 1.

    `clamp` is the largest distance that is told apart, -1 for all.
    """
    largest = K - 1
    if clamp >= 0:
        largest = min(largest, clamp)
    if geometry.same_length:
        largest = min(largest, geometry.mem_len)
    return largest + 1


def descending_distances(count: int, like: Tensor) -> Tensor:
    """[count - 1, ..., 1, 0] in the dtype and on the device of `like`."""
    return torch.arange(count - 1, -1, -1, dtype=like.dtype, device=like.device)


def sinusoid(distance: Tensor, d_model: int) -> Tensor:
    """s(d) = [sin(d w), cos(d w)], w_i = 10000^(-2i/D) (Vaswani et al. 2017, section 3.5).

    distance [R] -> [R, D], in the distance's dtype.
    """
    # The reference's checkpoints hold the frequencies as float32 numbers, also when it computes in float64.
    exponent = torch.arange(0.0, d_model, 2.0, dtype=torch.float32, device=distance.device) / d_model
    angle = distance[:, None] * (1 / 10000**exponent).to(distance.dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def scores_of_distances(query: Tensor, keys: Tensor) -> Tensor:
    """query [B, N, T, H], position keys [N, H, R], the same for the whole batch -> [B, N, T, R].

    One product per head for the whole batch. Broadcasting would copy the keys B times.
    """
    B, _, T, _ = query.shape
    scores: Tensor = (query.transpose(0, 1).flatten(1, 2) @ keys).unflatten(1, (B, T))
    return scores.transpose(0, 1)
