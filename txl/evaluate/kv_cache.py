"""Inference that computes nothing twice: keys and values are remembered instead of hidden states.

Shapes: B batch, L layers, T segment, M memory, K = M + T, N heads, H head width, D model width, R distances.

The training memory holds hidden states, whose keys and values are computed again for every segment, because the
weights change. Here they are fixed: keys and values of a token are computed once, when it is read, and the projected
positions once for all lengths. The attention is the model's own (`Attention.attend`); the losses are the same.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from txl.config.geometry import Geometry
from txl.errors import ConfigError
from txl.model.positions import attention_window
from txl.model.transformer import TransformerXL


class Cache:
    """Keys and values of the last tokens, in all layers: a ring, where a segment takes the place of the oldest tokens.

    Nothing is ever moved. A slot that holds a token older than the memory, which happens after a segment shorter than
    tgt_len, is masked.
    """

    def __init__(self, n_layer: int, geometry: Geometry):
        self.n_layer, self.mem_len = n_layer, geometry.mem_len
        self.slots = geometry.mem_len + geometry.tgt_len
        self.key = self.value = None  # [L, B, N, slots, H], made when the first segment shows type and device
        self.end = 0  # tokens read so far
        self.graphs: dict[int, tuple] = {}  # GraphedTransformerXL's, by the slot where a segment begins

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, T, H] of a segment -> those of all slots in use [B, N, K, H]."""
        if self.key is None:
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

    def layout(self, T: int) -> tuple[int, int, int]:
        """Of a segment of T more tokens: slots in use; the slot of its last token, counted back from the end of the
        ring; and how many of the oldest slots hold what is no longer remembered.
        """
        used = min(self.end + T, self.slots)
        ring_offset = -(self.end + T) % self.slots if used == self.slots else 0
        return used, ring_offset, used - T - len(self)

    def advance(self, T: int) -> None:
        """The segment was read by all layers: it belongs to the memory now."""
        self.end += T

    def __len__(self) -> int:
        """Tokens in the memory."""
        return min(self.end, self.mem_len)


def check_cacheable(model: TransformerXL, geometry: Geometry | None, runtime: str) -> None:
    """ConfigError where keys and values cannot be remembered."""
    if model.positions.adds_to_input:
        raise ConfigError(
            f"runtime={runtime} needs model.positions=relative or shaw: absolute positions change "
            "the keys of remembered tokens; use runtime=eager"
        )
    if geometry is not None and geometry.ext_len:
        raise ConfigError(f"ext_len={geometry.ext_len} needs runtime=eager: {runtime} reads no token twice")


class CachedTransformerXL(nn.Module):
    """A model with fixed weights. Called as the model is, but with a Cache in place of the memories."""

    def __init__(self, model: TransformerXL, geometry: Geometry | None = None):
        super().__init__()
        check_cacheable(model, geometry, "cached")
        self.model = model
        self._keys: dict[tuple, list] = {}
        self.eval()  # and so the model

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self.model.loss(hidden, target)

    def total_loss(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.total_loss(hidden, target)

    def log_prob(self, hidden: Tensor) -> Tensor:
        return self.model.log_prob(hidden)

    @torch.no_grad()
    def forward(self, input: Tensor, cache: Cache | list, geometry: Geometry) -> tuple[Tensor, Cache]:
        """input [B, T], T <= tgt_len; the cache, which is changed, or [] at the start -> hidden [B, T, D], cache."""
        T = input.shape[1]
        assert geometry.ext_len == 0 and geometry.tgt_len >= T, "a cache reads no token twice, and its ring is full"
        cache = Cache(len(self.model.layers), geometry) if isinstance(cache, list) else cache
        used, ring_offset, forgotten = cache.layout(T)
        mask = None
        if forgotten:
            mask = torch.zeros(used, device=self.device)
            mask[:forgotten] = -torch.inf
        keys = self.position_keys(used, geometry)
        hidden = read(self.model, input, cache.append, keys, attention_window(geometry), mask, ring_offset)
        cache.advance(T)
        return hidden, cache

    def position_keys(self, K: int, geometry: Geometry) -> list:
        """Every layer's positional keys for K keys; projected once, for the longest K of this geometry."""
        positions = self.model.positions
        longest = geometry.mem_len + geometry.tgt_len
        dtype = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        if (geometry, dtype) not in self._keys:
            encoding = positions.encode(longest, geometry)
            projected = [
                positions.keys(i, encoding, layer.attention.position) for i, layer in enumerate(self.model.layers)
            ]
            self._keys = {(geometry, dtype): projected}
        count = positions.distances(K, geometry)
        return [latest(keys, count) for keys in self._keys[geometry, dtype]]

    @property
    def device(self) -> torch.device:
        return self.model.layers[0].attention.qkv.weight.device


class GraphedTransformerXL(CachedTransformerXL):
    """The cached runtime as CUDA graphs: a full segment is one launch. Not measured yet: no GPU was at hand.

    A graph holds addresses, so there is one for every place in the ring where a segment may begin (`places`).
    """

    def __init__(self, model: TransformerXL, geometry: Geometry | None = None):
        super().__init__(model, geometry)
        self.pool = torch.cuda.graph_pool_handle()  # one graph runs at a time: all may use the same memory

    @torch.no_grad()
    def forward(self, input: Tensor, cache: Cache | list, geometry: Geometry) -> tuple[Tensor, Cache]:
        T = input.shape[1]
        if not cache or cache.end < geometry.mem_len or geometry.tgt_len > T:
            return super().forward(input, cache, geometry)
        place = cache.end % cache.slots
        if place not in cache.graphs:
            cache.graphs[place] = self.capture(input, cache, geometry)
        graph, static_input, static_hidden = cache.graphs[place]
        static_input.copy_(input)
        graph.replay()
        cache.advance(T)
        return static_hidden.clone(), cache

    def capture(self, input: Tensor, cache: Cache, geometry: Geometry) -> tuple:
        """The segment at this place as a graph, its input and its hidden states. The cache does not advance."""
        graph, input, end = torch.cuda.CUDAGraph(), input.clone(), cache.end
        with torch.cuda.graph(graph, pool=self.pool):
            hidden, _ = super().forward(input, cache, geometry)
        cache.end = end
        return graph, input, hidden


def places(geometry: Geometry) -> int:
    """How many slots of the ring a full segment may begin at."""
    slots = geometry.mem_len + geometry.tgt_len
    return slots // math.gcd(slots, geometry.tgt_len)


def latest(keys: Tensor | tuple, count: int) -> Tensor | tuple:
    """The columns of the `count` smallest distances."""
    return tuple(part[..., -count:] for part in keys) if isinstance(keys, tuple) else keys[..., -count:]


def read(
    model: TransformerXL,
    input: Tensor,
    append: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    position_keys: list,
    window: int | None,
    mask: Tensor | None = None,
    ring_offset: int = 0,
) -> Tensor:
    """One segment through all layers: input [B, T] -> hidden [B, T, D].

    append(layer, key, value) adds the segment's keys and values to the remembered ones and returns both.
    `mask`, `ring_offset`: as in `Attention.attend`.
    """
    h = model.embedding(input)
    for i, layer in enumerate(model.layers):
        attention = layer.attention
        x = attention.norm(h) if attention.pre_lnorm else h
        query, key, value = attention.project(x)
        key, value = append(i, key, value)
        h = attention.attend(h, query, key, value, model.positions, i, position_keys[i], window, mask, ring_offset)
        h = layer.feed_forward(h)
    return h
