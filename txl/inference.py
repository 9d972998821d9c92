"""Inference that computes nothing twice: keys and values are remembered instead of hidden states.

Shapes: B batch, L layers, T segment, M memory, K = M + T, N heads, H head width, D model width, R distances.

The training memory holds hidden states, whose keys and values are computed again for every segment, because the
weights change. Here they are fixed: keys and values of a token are computed once, when it is read, and the projected
positions once for all lengths. The attention is the model's own (`Attention.read`); the losses are the same.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from txl.attention import window_of
from txl.choices import Runtime
from txl.config import Geometry
from txl.errors import ConfigError
from txl.model import TransformerXL


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
        turn = -(self.end + T) % self.slots if used == self.slots else 0
        return used, turn, used - T - len(self)

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
        used, turn, forgotten = cache.layout(T)
        mask = None
        if forgotten:
            mask = torch.zeros(used, device=self.device)
            mask[:forgotten] = -torch.inf
        keys = self.position_keys(used, geometry)
        hidden = read(self.model, input, cache.append, keys, window_of(geometry), mask, turn)
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
    turn: int = 0,
) -> Tensor:
    """One segment through all layers: input [B, T] -> hidden [B, T, D].

    append(layer, key, value) adds the segment's keys and values to the remembered ones and returns both.
    `mask`, `turn`: as in `Attention.read`.
    """
    h = model.embedding(input)
    for i, layer in enumerate(model.layers):
        attention = layer.attention
        x = attention.norm(h) if attention.pre_lnorm else h
        key, value = append(i, *attention.key_value(x))
        query = attention.query(x)
        h = attention.read(h, query, key, value, model.positions, i, position_keys[i], window, mask, turn)
        h = layer.feed_forward(h)
    return h


# --------------------------------------------------------------------------- programs: fixed shapes, one function


class Step(nn.Module):
    """One segment as a function of tensors alone, for tracing, exporting and compiling.

    (input [B, T], target [B, T], keys and values [L, B, N, M, H], filled []) -> losses [B, T] in nats, and the new
    keys, values and filled. `filled` counts the tokens that the memory holds; it starts at 0 with any finite keys.
    """

    def __init__(self, model: TransformerXL, geometry: Geometry, runtime: str = "step"):
        super().__init__()
        check_cacheable(model, geometry, runtime)
        model.eval()
        self.model, self.geometry = model, geometry
        positions, K = model.positions, geometry.mem_len + geometry.tgt_len
        with torch.no_grad():
            encoding = positions.encode(K, geometry)
            self.position_keys = [positions.keys(i, encoding, x.attention.position) for i, x in enumerate(model.layers)]

    def forward(self, input: Tensor, target: Tensor, keys: Tensor, values: Tensor, filled: Tensor):
        M, T = self.geometry.mem_len, self.geometry.tgt_len
        new_keys, new_values = [], []

        def append(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            key, value = torch.cat([keys[layer], key], dim=2), torch.cat([values[layer], value], dim=2)
            new_keys.append(key[:, :, T:])
            new_values.append(value[:, :, T:])
            return key, value

        missing = torch.arange(M + T, device=input.device) < M - filled
        mask = torch.zeros(M + T, dtype=keys.dtype, device=input.device).masked_fill(missing, -torch.inf)
        hidden = read(self.model, input, append, self.position_keys, window_of(self.geometry), mask)
        loss = traceable_loss(self.model, hidden.flatten(0, 1), target.flatten()).view_as(target)
        return loss, torch.stack(new_keys), torch.stack(new_values), (filled + T).clamp(max=M)

    def start(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and filled before the first segment."""
        attention = self.model.layers[0].attention
        weight = attention.qkv.weight
        shape = (len(self.model.layers), batch_size, attention.n_head, self.geometry.mem_len, attention.d_head)
        return weight.new_zeros(shape), weight.new_zeros(shape), torch.zeros((), dtype=torch.long, device=weight.device)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Arguments to trace with."""
        ids = torch.arange(batch_size * self.geometry.tgt_len, device=self.model.layers[0].attention.qkv.weight.device)
        ids = (ids * 7919 % self.model.vocab_size).view(batch_size, -1)
        return ids, ids.clone(), *self.start(batch_size)  # one tensor twice would be one argument of the program


def traceable_loss(model: TransformerXL, hidden: Tensor, target: Tensor) -> Tensor:
    """As the model's loss (hidden [n, D], target [n] -> [n]), but the host need not know any cluster's size."""
    softmax, embedding = model.softmax, model.embedding
    spans, columns = softmax.clusters.spans, softmax.clusters.spans[0][1] + softmax.clusters.n_tails
    head_target = target
    for i, (begin, end) in enumerate(spans[1:], start=1):
        head_target = torch.where((target >= begin) & (target < end), columns - i, head_target)
    loss = -softmax.head_logits(hidden, embedding).log_softmax(-1).gather(1, head_target[:, None]).squeeze(1)
    for i, (begin, end) in enumerate(spans[1:], start=1):
        index = ((target >= begin) & (target < end)).nonzero().squeeze(1)
        log_prob = softmax.tail_logits(hidden[index], i, embedding).log_softmax(-1)
        loss = loss.index_add(0, index, -log_prob.gather(1, (target[index] - begin)[:, None]).squeeze(1))
    return loss


class Program(nn.Module):
    """A Step made into something faster (`make_program`)."""

    def __init__(self, step: Step, function):
        super().__init__()
        self.step, self.function = step, function
        self.eval()

    @torch.no_grad()
    def forward(self, input: Tensor, target: Tensor, memory: tuple | list) -> tuple[Tensor, tuple]:
        """input and target [B, T'], T' <= tgt_len (shorter at the end of a text only) -> losses [B, T'], memory."""
        T, length = self.step.geometry.tgt_len, input.shape[1]
        if length < T:
            input, target = (nn.functional.pad(ids, (0, T - length)) for ids in (input, target))
        memory = memory or self.step.start(len(input))
        # Machine code made ahead of time trusts that its arguments lie in memory as the example's did.
        loss, *memory = self.function(input.contiguous(), target.contiguous(), *memory)
        return loss[:, :length], tuple(memory)


def make_program(step: Step, runtime: Runtime, batch_size: int, path: str | None = None):
    """The step as torch.compile, TorchScript or AOTInductor (from torch.export) has it; batch size and lengths fixed.

    path: load the program from this file if it is there, else write it. It can be loaded without this package, by
    `torch.jit.load` or `torch._inductor.aoti_load_package`.
    """
    if runtime is Runtime.compile:
        return torch.compile(step, dynamic=False)
    file = Path(path) if path else None
    if file and file.exists():
        return load_program(file, runtime)
    if runtime is Runtime.torchscript:
        program = trace(step, batch_size)
        if file:
            program.save(str(file))
            return load_program(file, runtime)  # what was written is what is measured
        return program
    with tempfile.TemporaryDirectory() as folder:
        file = file or Path(folder) / "step.pt2"
        export(step, batch_size, file)
        return load_program(file, runtime)


def load_program(file: Path, runtime: Runtime):
    """Raises ConfigError for a file that is no such program."""
    try:
        load = torch.jit.load if runtime is Runtime.torchscript else torch._inductor.aoti_load_package
        return load(str(file))
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"program={file} is no program of runtime={runtime.name} ({reason}); remove it") from None


def trace(step: Step, batch_size: int) -> torch.jit.ScriptModule:
    """TorchScript, which torch calls deprecated."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(step, step.example(batch_size), check_trace=False)


def export(step: Step, batch_size: int, file: Path) -> None:
    """An AOTInductor package (.pt2): machine code and weights."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(step, step.example(batch_size), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
