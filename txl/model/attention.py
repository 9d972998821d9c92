"""Multi-head attention over a segment and its memory, with scores that depend on distance.

Shapes: B batch, T queries, M memory, K = M + T keys, N heads, H head width, D model width, R distances.

Query i stands at distance d = i + M - j from key j. The positional score depends on d only (Dai et al. 2019,
section 3.3). A positional scheme (positions/) computes it once per *distance*, as `by_distance` [B, N, T, R] whose
columns stand in descending order (R - 1, ..., 1, 0). `relative_shift` turns it into one column per *key*. So no score
is computed twice.
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
from txl.model.positions.scheme import PositionKeys, PositionScheme, SegmentPositions


def relative_shift(by_distance: Tensor, K: int, window: int | None) -> Tensor:
    """Scores per distance -> scores per key, with -inf for keys that a query must not see.

    Row i of the result is row i of the input, moved i places to the left. Append T - 1 columns of -inf, for the
    negative distances (the future), and read all rows as one long vector. A row that is one element shorter then
    begins one element earlier each time. So the shift (Dai et al. 2019, appendix B) is a view, and it contains the
    causal mask.

    Args:
        by_distance: [B, N, T, R], columns by descending distance. Distances of R and more share the first column
            (clamp_len).
        K: number of keys.
        window: largest distance that a query sees (same_length); None for all.

    Returns:
        [B, N, T, K].
    """
    B, N, T, R = by_distance.shape
    beyond_window = 0 if window is None else max(0, K - 1 - window)
    clamped = K - beyond_window - R
    assert clamped >= 0, "more distances than keys"
    minus_infinity = by_distance.new_full((1, 1, 1, 1), -math.inf)
    row = torch.cat(
        [
            minus_infinity.expand(B, N, T, beyond_window),
            by_distance[..., :1].expand(B, N, T, clamped),
            by_distance,
            minus_infinity.expand(B, N, T, T - 1),
        ],
        dim=-1,
    )  # [B, N, T, K + T - 1]
    if T == 1:
        return row
    width = K + T - 2  # one less than the row
    shifted: Tensor = row.flatten(-2)[..., T - 1 : T - 1 + T * width].unflatten(-1, (T, width))
    return shifted[..., :K]


def attention_with_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    dropatt: float,
    backend: AttentionBackend = AttentionBackend.eager,
    ring_offset: int = 0,
) -> Tensor:
    """softmax(query key^T / sqrt(H) + bias) value.

    Args:
        query: [B, N, T, H].
        key: [B, N, K, H].
        value: [B, N, K, H].
        bias: [B, N, T, K], or a shape that broadcasts to it.
        dropatt: dropout of the probabilities.
        backend: eager or sdpa.
        ring_offset: key j has the bias of column (j + ring_offset) mod K, for keys in a ring buffer
            (txl/evaluate/kv_cache.py).

    Returns:
        [B, N, T, H].
    """
    if backend is AttentionBackend.sdpa:
        bias = bias.roll(-ring_offset, -1) if ring_offset else bias
        return F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropatt)
    score = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if ring_offset:
        score[..., :-ring_offset] += bias[..., ring_offset:]
        score[..., -ring_offset:] += bias[..., :ring_offset]
    else:
        score += bias
    probability = score.softmax(dim=-1, dtype=score.dtype)  # autocast would keep a second copy, in float32
    return dropout(probability, dropatt) @ value


def choose_backend(
    wanted: AttentionBackend, device: torch.device, arithmetic: Arithmetic, deterministic: bool = False
) -> AttentionBackend:
    """What computes attention on this device.

    `auto` becomes triton where its kernel can use tensor cores: on GPUs since Ampere, in half precision and TF32.
    Elsewhere it becomes eager.

    Args:
        wanted: the option `attention`.
        device: where the model runs.
        arithmetic: of the matrix products.
        deterministic: every gradient must have the same bits each time.

    Returns:
        eager, sdpa or triton.

    Raises:
        ConfigError: what was asked for cannot run here, or not in this way.
    """
    if deterministic and wanted is AttentionBackend.sdpa and device.type == "cuda":
        raise ConfigError("attention=sdpa has no deterministic gradient on a GPU; use attention=auto")
    installed = importlib.util.find_spec("triton") is not None
    if wanted is AttentionBackend.triton and not (installed and device.type == "cuda"):
        missing = "triton, which is not installed" if device.type == "cuda" else "a GPU"
        raise ConfigError(f"attention=triton needs {missing}; use attention=auto")
    if wanted is not AttentionBackend.auto:
        return wanted
    usable = device.type == "cuda" and installed and arithmetic not in (Arithmetic.fp32, Arithmetic.fp64)
    tensor_cores = usable and torch.cuda.get_device_capability(device) >= (8, 0)
    return AttentionBackend.triton if tensor_cores else AttentionBackend.eager


class Attention(nn.Module):
    """Multi-head attention of a segment over its memory and itself, with residual connection and LayerNorm."""

    def __init__(self, model: ModelConfig, backend: AttentionBackend = AttentionBackend.eager, is_first: bool = True):
        """Make the parameters. `is_first`: this is the first layer, whose values `model.value_residual` hands on."""
        super().__init__()
        self.backend = backend
        self.n_head, self.d_head = model.n_head, model.d_head
        self.pre_lnorm, self.dropatt = model.pre_lnorm, model.dropatt
        width = model.n_head * model.d_head
        self.qkv = Linear(model.d_model, 3 * width, bias=False)  # one tensor, because LAMB's trust ratio is per tensor
        self.output = Linear(width, model.d_model, bias=False)
        projects = model.positions.facts.projects_distances
        self.position = Linear(model.d_model, width, bias=False) if projects else None  # W_r
        self.norm = nn.LayerNorm(model.d_model)
        self.dropout = Dropout(model.dropout)
        self.is_first_of_residuals = model.value_residual and is_first
        adds_first = model.value_residual and not is_first
        self.value_factors = nn.Parameter(torch.ones(model.n_head)) if adds_first else None

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The segment [B, T, D] -> queries, keys and values, each [B, N, T, H]."""
        query, key, value = self.qkv(h).chunk(3, dim=-1)
        return self._split_heads(query), self._split_heads(key), self._split_heads(value)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, D] -> keys and values, each [B, N, M, H]. No query stands in the memory."""
        weight = self.qkv.weight[self.n_head * self.d_head :]
        key, value = linear(memory, weight).chunk(2, dim=-1)
        return self._split_heads(key), self._split_heads(value)

    def add_first_value(self, value: Tensor, first_value: Tensor | None) -> Tensor:
        """Value residual (Zhou et al. 2024): value + factor * first_value, with a learned factor per head.

        A word's own vector so reaches every layer, however much the layers between have changed it.

        Args:
            value: this layer's values [B, N, K, H].
            first_value: the first layer's, of the same tokens; None in that layer, or without this option.

        Returns:
            [B, N, K, H].
        """
        if self.value_factors is None or first_value is None:
            return value
        return torch.addcmul(value, self.value_factors.to(value.dtype)[:, None, None], first_value)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, T, N H] -> [B, N, T, H]"""
        heads: Tensor = x.unflatten(-1, (self.n_head, self.d_head))
        return heads.transpose(1, 2)

    def forward(
        self, h: Tensor, memory: Tensor, layer: int, positions: SegmentPositions, first_value: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One layer's attention.

        Segment and memory are projected in two products. The memory has no gradient, so none is computed for it.

        Args:
            h: the segment, [B, T, D].
            memory: [B, M, D], without gradient.
            layer: index of the layer.
            positions: those of the segment.
            first_value: for `add_first_value`.

        Returns:
            [B, T, D]; and in the first layer of a model with value residuals its values [B, N, K, H].
        """
        query, key, value = self.project(self.norm(h) if self.pre_lnorm else h)
        if memory.shape[1]:
            memory_key, memory_value = self.project_memory(self.norm(memory) if self.pre_lnorm else memory)
            key, value = torch.cat([memory_key, key], dim=2), torch.cat([memory_value, value], dim=2)
        scheme, encoding, window = positions
        position_keys = scheme.keys(layer, encoding, self.position)
        value = self.add_first_value(value, first_value)
        update = self.attend(query, key, value, scheme, layer, position_keys, window)
        return self.add(h, update), value if self.is_first_of_residuals else None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scheme: PositionScheme,
        layer: int,
        position_keys: PositionKeys,
        window: int | None,
        mask: Tensor | None = None,
        ring_offset: int = 0,
    ) -> Tensor:
        """Everything after the projections: scores, softmax, weighted values, output.

        Args:
            query: [B, N, T, H].
            key: [B, N, K, H].
            value: [B, N, K, H].
            scheme: the positional scheme.
            layer: index of the layer.
            position_keys: what its `keys` returned for this layer.
            window: largest distance that a query sees (same_length); None for all.
            mask: [K], added to the scores: 0, or -inf for keys that do not exist. Only for cached inference.
            ring_offset: as in `attention_with_bias`. Only for cached inference.

        Returns:
            [B, T, D].
        """
        by_distance = scheme.score(layer, query, position_keys)
        query, key = scheme.transform(layer, query, key, position_keys, ring_offset)
        dropatt = self.dropatt if self.training else 0.0
        if self.backend is AttentionBackend.triton and mask is None:
            from txl.model.fused_attention import relative_attention  # needs Triton

            heads = relative_attention(query, key, value, by_distance, window, dropatt, ring_offset)
        else:
            bias = relative_shift(by_distance, key.shape[2], window)
            if mask is not None:
                bias = bias + mask
            heads = attention_with_bias(query, key, value, bias, dropatt, self.backend, ring_offset)
        update: Tensor = self.dropout(self.output(heads.transpose(1, 2).flatten(-2)))
        return update

    def add(self, h: Tensor, update: Tensor) -> Tensor:
        """The residual connection, with LayerNorm behind it if it is not before attention: [B, T, D] both."""
        if self.pre_lnorm:
            return h + update
        normed: Tensor = self.norm(h + update)
        return normed
