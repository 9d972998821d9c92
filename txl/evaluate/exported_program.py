"""The cached step as a program of fixed shapes: torch.compile, TorchScript, or machine code from torch.export.

Shapes: B batch, L layers, T segment, M memory, N heads, H head width, D model width, n tokens.
"""

import hashlib
import json
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from txl.config.compose import to_dict
from txl.config.geometry import Geometry
from txl.config.schema import Runtime
from txl.errors import ConfigError
from txl.evaluate.kv_cache import check_cacheable, read
from txl.files import write_json
from txl.model.positions import attention_window
from txl.model.transformer import TransformerXL


class Step(nn.Module):
    """One segment as a function of tensors alone, for tracing, exporting and compiling.

    (input [B, T], target [B, T], keys and values [L, B, N, M, H], filled []) -> losses [B, T] in nats, and the new
    keys, values and filled. `filled` counts the tokens that the memory holds; it starts at 0 with any finite keys.
    """

    def __init__(self, model: TransformerXL, geometry: Geometry, runtime: str = "step"):
        super().__init__()
        check_cacheable(model, geometry, runtime)
        model.eval()
        self.model, self.geometry, self.loss = model, geometry, traceable_loss
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
        hidden = read(self.model, input, append, self.position_keys, attention_window(self.geometry), mask)
        loss = self.loss(self.model, hidden, target)
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
    """As the model's loss (hidden [B, T, D], target [B, T] -> [B, T]), but the host need not know a cluster's size."""
    shape, hidden, target = target.shape, hidden.flatten(0, 1), target.flatten()
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
    return loss.view(shape)


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
        loss, *memory = self.function(input.long().contiguous(), target.long().contiguous(), *memory)
        return loss[:, :length], tuple(memory)


def make_program(step: Step, runtime: Runtime, batch_size: int, path: str | None = None):
    """The step as torch.compile, TorchScript or AOTInductor (from torch.export) has it; batch size and lengths fixed.

    path: load the program from this file if it is there, else write it, and beside it what it was made for
    (FILE.json). It can be loaded without this package, by `torch.jit.load` or `torch._inductor.aoti_load_package`.
    """
    if runtime is Runtime.compile:
        # Sizes of clusters differ from segment to segment, and each would be another program.
        step.loss = torch.compiler.disable(TransformerXL.loss)
        return torch.compile(step, dynamic=False)
    make = trace if runtime is Runtime.torchscript else export
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "program.pt2"
            make(step, batch_size, file)
            return load_program(file, runtime)
    file, made_for = Path(path), purpose(step, runtime, batch_size)
    if file.exists():
        check_purpose(file, made_for)
    else:
        make(step, batch_size, file)
        write_json(described(file), made_for, indent=1)
    return load_program(file, runtime)  # what was written is what is measured


def described(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def purpose(step: Step, runtime: Runtime, batch_size: int) -> dict:
    """All that a program is fixed to."""
    weight = step.model.layers[0].attention.qkv.weight
    kind, dtype = weight.device.type, weight.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    digest = hashlib.sha256()
    for name, tensor in sorted(step.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    fixed = {"runtime": runtime.name, "device": kind, "precision": str(dtype).removeprefix("torch.")}
    return fixed | {"batch_size": batch_size} | to_dict(step.geometry) | {"weights": digest.hexdigest()}


def check_purpose(file: Path, wanted: dict) -> None:
    """ConfigError where the program computes something else: its shapes and weights would be used unasked."""
    remedy = "remove it, or name another file"
    try:
        found = json.loads(described(file).read_text())
    except (OSError, ValueError):
        raise ConfigError(f"program={file} has no {described(file).name}, which says what it is of; {remedy}") from None
    for key, value in wanted.items():
        if found.get(key) != value:
            difference = "other weights" if key == "weights" else f"{key}={found.get(key)}, not {value}"
            raise ConfigError(f"program={file} was made for {difference}; {remedy}")


def load_program(file: Path, runtime: Runtime):
    """Raises ConfigError for a file that is no such program."""
    try:
        load = torch.jit.load if runtime is Runtime.torchscript else torch._inductor.aoti_load_package
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(str(file))
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"program={file} is no program of runtime={runtime.name} ({reason}); remove it") from None


def trace(step: Step, batch_size: int, file: Path) -> None:
    """TorchScript, which torch calls deprecated."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(step, step.example(batch_size), check_trace=False).save(str(file))


def export(step: Step, batch_size: int, file: Path) -> None:
    """An AOTInductor package (.pt2): machine code and weights."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(step, step.example(batch_size), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
