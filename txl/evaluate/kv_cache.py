"""Inference with a cache of keys and values, so that every token is computed once.

Shapes: B batch, L layers, T segment, M memory, K = M + T, N heads, H head width, D model width, R distances.

The training memory holds hidden states, whose keys and values are computed again for every segment because the
weights change. At inference the weights are fixed: the keys and values of a token are computed once, when it is read,
and the projected positions once for all lengths. The attention is the model's own (`Attention.attend`), so the losses
are the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.errors import ConfigError, any_of
from txl.evaluate.fixed_weights import with_fixed_weights
from txl.model.adaptive_softmax import AdaptiveSoftmax
from txl.model.attention import Attention
from txl.model.clusters import TokensByCluster
from txl.model.positions.scheme import PositionKeys, attention_window
from txl.model.transformer import TransformerXL
from txl.system.cuda_graphs import CapturedCall

MOST_TOKENS_IN_GRAPH = 256  # whose logits of all words fit into memory: 274 MB in float32 with 267,735 words


class RingLayout(NamedTuple):
    """Where a segment lies in the ring of a `KeyValueCache`."""

    used: int  # slots that hold tokens, those of the segment included
    offset: int  # slots between the segment's last token and the end of the ring
    forgotten: int  # of the oldest slots: tokens that are outside of the memory already


class KeyValueCache:
    """Keys and values of the last tokens, in all layers, as a ring buffer: a segment replaces the oldest tokens.

    Nothing is moved. A slot whose token is older than the memory is masked; this happens after a segment that is
    shorter than tgt_len.
    """

    def __init__(self, n_layer: int, geometry: Geometry):
        self.n_layer, self.mem_len, self._geometry = n_layer, geometry.mem_len, geometry
        self.slots = geometry.mem_len + geometry.tgt_len
        self.key: Tensor | None = None  # [L, B, N, slots, H]; allocated when the first segment shows type and device
        self.value: Tensor | None = None  # the same shape
        self.end = 0  # tokens read so far
        self.graphs: dict[int, CapturedCall] = {}  # of GraphedTransformerXL, by the slot where a segment begins

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, N, T, H] of a segment; returns those of all used slots [B, N, K, H]."""
        if self.key is None or self.value is None:
            B, N, _, H = key.shape
            self.key, self.value = (key.new_empty(self.n_layer, B, N, self.slots, H) for _ in range(2))
        T, begin = key.shape[2], self.end % self.slots
        before_end = min(T, self.slots - begin)
        used = min(self.end + T, self.slots)
        for buffer, new in ((self.key[layer], key), (self.value[layer], value)):
            buffer[:, :, begin : begin + before_end] = new[:, :, :before_end]
            if before_end < T:
                buffer[:, :, : T - before_end] = new[:, :, before_end:]
        return self.key[layer, :, :, :used], self.value[layer, :, :, :used]

    def layout(self, T: int) -> RingLayout:
        """Where the next segment of T tokens will lie."""
        used = min(self.end + T, self.slots)
        offset = -(self.end + T) % self.slots if used == self.slots else 0
        return RingLayout(used, offset, used - T - len(self))

    def fork(self, count: int, geometry: Geometry) -> "KeyValueCache":
        """A cache of `count` texts, which have all read what the one text of this cache has read.

        With another geometry, its ring must have room for all that was read, and nothing is forgotten yet.
        """
        forked = KeyValueCache(self.n_layer, geometry)
        forked.end = self.end
        if self.key is None or self.value is None:
            return forked
        if geometry == self._geometry:
            forked.key, forked.value = (x.repeat(1, count, 1, 1, 1) for x in (self.key, self.value))
            return forked
        assert self.end <= min(self.mem_len, forked.mem_len), "a ring that turned has its tokens in other slots"
        L, _, N, _, H = self.key.shape
        forked.key, forked.value = (self.key.new_empty(L, count, N, forked.slots, H) for _ in range(2))
        for new, old in ((forked.key, self.key), (forked.value, self.value)):
            new[:, :, :, : self.end] = old[:, :, :, : self.end]
        return forked

    def advance(self, T: int) -> None:
        """Count a segment of T tokens as read. Call it when all layers have appended their keys and values."""
        self.end += T

    def __len__(self) -> int:
        """Tokens in the memory."""
        return min(self.end, self.mem_len)


def check_cacheable(
    model: TransformerXL, geometry: Geometry | None, option: str, instead: str = "runtime=eager"
) -> None:
    """Raises ConfigError if the keys and values of this model cannot be cached, or not with these lengths.

    Args:
        model: the model.
        geometry: the lengths; None: any.
        option: what needs the cache, such as runtime=cached.
        instead: the value that needs no cache.
    """
    if not model.positions.facts.caches_keys:
        able = any_of([scheme.name for scheme in Positions if scheme.facts.caches_keys])
        raise ConfigError(
            f"{option} needs model.positions={able}: with this model's positions, "
            f"the keys of a token change when more tokens follow; use {instead}"
        )
    if geometry is not None and geometry.ext_len:
        raise ConfigError(f"ext_len={geometry.ext_len} needs {instead}: {option} reads no token twice")


class CachedTransformerXL(nn.Module):
    """A model with fixed weights. It is called as the model is, with a KeyValueCache in place of the memories."""

    def __init__(self, model: TransformerXL, geometry: Geometry | None = None):
        super().__init__()
        check_cacheable(model, geometry, "runtime=cached")
        self.model = model
        self._position_keys: dict[tuple[Geometry, torch.dtype | None], list[PositionKeys]] = {}
        self.eval()  # the model, too

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """As `TransformerXL.loss`."""
        return self.model.loss(hidden, target)

    def total_loss(
        self, hidden: Tensor, target: Tensor, *, tokens: TokensByCluster | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `TransformerXL.total_loss`."""
        return self.model.total_loss(hidden, target, tokens=tokens)

    @property
    def softmax(self) -> AdaptiveSoftmax:
        """The model's."""
        return self.model.softmax

    def log_prob(self, hidden: Tensor) -> Tensor:
        """As `TransformerXL.log_prob`."""
        return self.model.log_prob(hidden)

    @torch.no_grad()
    def forward(
        self, input: Tensor, cache: "KeyValueCache | list[Tensor]", geometry: Geometry
    ) -> tuple[Tensor, KeyValueCache]:
        """`read` without gradients."""
        return self.read(input, cache, geometry)

    def read(
        self, input: Tensor, cache: "KeyValueCache | list[Tensor]", geometry: Geometry
    ) -> tuple[Tensor, KeyValueCache]:
        """Read one segment.

        Args:
            input: token ids [B, T], T at most tgt_len.
            cache: what was read before; it is changed. An empty list where a text starts.
            geometry: the lengths to read with; ext_len must be 0.

        Returns:
            Hidden states [B, T, D] and the cache for the next segment.
        """
        T = input.shape[1]
        assert geometry.ext_len == 0 and geometry.tgt_len >= T, "the ring has room for tgt_len new tokens"
        if not isinstance(cache, KeyValueCache):
            cache = KeyValueCache(len(self.model.layers), geometry)
        used, offset, forgotten = cache.layout(T)
        mask = None
        if forgotten:
            mask = torch.zeros(used, device=self.device)
            mask[:forgotten] = -torch.inf
        keys = self.position_keys(used, geometry)
        window = attention_window(geometry)
        hidden = run_layers_with_cache(self.model, input, cache.append, keys, window, mask, offset)
        cache.advance(T)
        return hidden, cache

    @torch.no_grad()
    def position_keys(self, K: int, geometry: Geometry) -> list[PositionKeys]:
        """The position keys of every layer, for K keys. They are computed once, for the largest K of this geometry."""
        positions = self.model.positions
        longest = geometry.mem_len + geometry.tgt_len
        dtype = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        if (geometry, dtype) not in self._position_keys:
            self._position_keys = {(geometry, dtype): all_position_keys(self.model, longest, geometry)}
        count = positions.distances(K, geometry)
        return [tuple(part[..., -count:] for part in keys) for keys in self._position_keys[geometry, dtype]]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.layers[0].attention.qkv.weight.device


class FixedAttentionTransformerXL(CachedTransformerXL):
    """A model whose attention is fixed, so that its keys and values are cached, while all other weights may learn."""

    def __init__(self, model: TransformerXL, geometry: Geometry, batch_size: int = 1):
        """Prepare attention's matrices under the autocast that is active now; see `with_fixed_weights`."""
        super().__init__(with_fixed_weights(model, batch_size, only_attention=True), geometry)

    def forward(
        self, input: Tensor, cache: "KeyValueCache | list[Tensor]", geometry: Geometry
    ) -> tuple[Tensor, KeyValueCache]:
        """As `CachedTransformerXL.read`, with gradients where they are enabled."""
        return self.read(input, cache, geometry)


class GraphedTransformerXL(CachedTransformerXL):
    """The cached runtime as CUDA graphs: a segment of tgt_len tokens is one launch, and so are its losses.

    A graph holds addresses, so there is one for every slot of the ring where a segment may begin (`count_graphs`).
    """

    def __init__(self, model: TransformerXL, geometry: Geometry | None = None):
        super().__init__(model, geometry)
        self.pool = torch.cuda.graph_pool_handle()  # one graph runs at a time, so all may use the same memory
        self.loss_graphs: dict[torch.Size, CapturedCall] = {}  # by the shape of the hidden states

    @torch.no_grad()
    def forward(
        self, input: Tensor, cache: "KeyValueCache | list[Tensor]", geometry: Geometry
    ) -> tuple[Tensor, KeyValueCache]:
        """As `CachedTransformerXL.forward`. Segments before the memory is full, and short ones, run without a graph."""
        T = input.shape[1]
        is_full = isinstance(cache, KeyValueCache) and len(cache) == geometry.mem_len > 0
        if not isinstance(cache, KeyValueCache) or not is_full or geometry.tgt_len > T:
            return super().forward(input, cache, geometry)
        slot = cache.end % cache.slots
        if slot not in cache.graphs:
            cache.graphs[slot] = self.capture(input, cache, geometry)
        hidden: Tensor = cache.graphs[slot](input).clone()
        cache.advance(T)
        return hidden, cache

    def capture(self, input: Tensor, cache: KeyValueCache, geometry: Geometry) -> CapturedCall:
        """Capture the segment [B, T] that begins at the cache's next slot. The cache does not advance."""
        end = cache.end

        def read(ids: Tensor) -> Tensor:
            hidden, _ = super(GraphedTransformerXL, self).forward(ids, cache, geometry)
            cache.end = end
            return hidden

        return CapturedCall(read, [input], self.pool)

    @torch.no_grad()
    def total_loss(
        self, hidden: Tensor, target: Tensor, *, tokens: TokensByCluster | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `TransformerXL.total_loss`; for a few tokens as a graph, in which each passes through every cluster."""
        if target.numel() > MOST_TOKENS_IN_GRAPH:
            return super().total_loss(hidden, target, tokens=tokens)
        states, model = hidden[:, -target.shape[1] :].flatten(0, 1), self.model

        def losses(states: Tensor, target: Tensor) -> Tensor:
            found = model.softmax.loss_through_all_clusters(states, target, model.embedding)
            return found.sum(dtype=torch.float64)

        if states.shape not in self.loss_graphs:
            self.loss_graphs[states.shape] = CapturedCall(losses, [states, target.flatten()], self.pool)
        nats: Tensor = self.loss_graphs[states.shape](states, target.flatten()).clone()
        return nats.float(), nats


def count_graphs(geometry: Geometry) -> int:
    """How many slots of the ring a segment of tgt_len tokens may begin at."""
    slots = geometry.mem_len + geometry.tgt_len
    return slots // math.gcd(slots, geometry.tgt_len)


def all_position_keys(model: TransformerXL, K: int, geometry: Geometry) -> list[PositionKeys]:
    """The position keys of every layer, for K keys."""
    # LayerNorm's weights are never cast to half precision.
    encoding = model.positions.encode(K, geometry, model.layers[0].attention.norm.weight)
    return [model.positions.keys(i, encoding, layer.attention.position) for i, layer in enumerate(model.layers)]


def run_layers_with_cache(
    model: TransformerXL,
    input: Tensor,
    append: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    position_keys: Sequence[PositionKeys],
    window: int | None,
    mask: Tensor | None = None,
    ring_offset: int = 0,
) -> Tensor:
    """Read one segment through all layers, with cached keys and values.

    In a gradient attention is a constant: it passes the residual connections, LayerNorm and the feed-forward layers.

    Args:
        model: the weights.
        input: token ids [B, T].
        append: append(layer, key, value) adds the segment's keys and values [B, N, T, H] to the cached ones and
            returns both together, [B, N, K, H].
        position_keys: of every layer, for K keys.
        window: largest distance that a query sees (same_length); None for all.
        mask: [K], added to the scores: 0, or -inf for keys that must not be seen.
        ring_offset: as in `Attention.attend`.

    Returns:
        Hidden states [B, T, D].
    """
    first_value: Tensor | None = None

    def attend(i: int, attention: Attention, h: Tensor) -> Tensor:
        nonlocal first_value
        query, key, value = attention.project(attention.norm(h) if attention.pre_lnorm else h)
        value = attention.add_first_value(value, first_value)
        first_value = value if i == 0 else first_value
        key, value = append(i, key, value)
        return attention.attend(query, key, value, model.positions, i, position_keys[i], window, mask, ring_offset)

    if torch.is_grad_enabled():
        attend = torch.no_grad()(attend)
    h: Tensor = model.embedding(input)
    for i, layer in enumerate(model.layers):
        h = layer.feed_forward(layer.attention.add(h, attend(i, layer.attention, h)))
    return h
