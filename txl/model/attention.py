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

from txl.config.model import AttentionBackend, ModelConfig
from txl.config.precision import Arithmetic
from txl.errors import ConfigError
from txl.model.dropout import Dropout, dropout
from txl.model.linear import Linear, linear


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
    from txl.model.attention_kernel import relative_attention

    return relative_attention(query, key, value, by_distance, window, dropatt)


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
