"""The cached step as a program of fixed shapes: torch.compile, TorchScript, or machine code from torch.export.

Shapes: B batch, L layers, T segment, M memory, N heads, H head width, D model width, n tokens.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from txl.config.compose import to_dict
from txl.config.geometry import Geometry
from txl.config.schema import Runtime
from txl.errors import ConfigError
from txl.evaluate.kv_cache import all_position_keys, check_cacheable, run_layers_with_cache
from txl.evaluate.program_signature import is_signed_program, sign_program
from txl.files import read_json, write_json
from txl.model.positions.scheme import attention_window
from txl.model.transformer import TransformerXL

StepFunction = Callable[..., tuple[Tensor, ...]]  # (input, target, keys, values, filled) -> (losses, the new state)


SIGNATURE = "signature"  # key of a program's description: that this user wrote the file


class CachedStep(nn.Module):
    """One segment as a function of tensors alone, for tracing, exporting and compiling."""

    def __init__(self, model: TransformerXL, geometry: Geometry, runtime: str = "step"):
        super().__init__()
        check_cacheable(model, geometry, f"runtime={runtime}")
        model.eval()
        self.model, self.geometry = model, geometry
        self.loss: Callable[[TransformerXL, Tensor, Tensor], Tensor] = traceable_loss
        with torch.no_grad():
            found = all_position_keys(model, geometry.mem_len + geometry.tgt_len, geometry)
        # Some are views of parameters, which a trace takes for no constants.
        self.position_keys = [tuple(part.detach().clone() for part in keys) for keys in found]

    def forward(
        self, input: Tensor, target: Tensor, keys: Tensor, values: Tensor, filled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read one segment.

        Args:
            input: token ids [B, T].
            target: the tokens after them [B, T].
            keys: [L, B, N, M, H], of the memory; any finite numbers where it holds no token yet.
            values: the same shape.
            filled: [], int64: tokens that the memory holds.

        Returns:
            Losses [B, T] in nats, and the new keys, values and filled.
        """
        M, T = self.geometry.mem_len, self.geometry.tgt_len
        new_keys, new_values = [], []

        def append(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            key, value = torch.cat([keys[layer], key], dim=2), torch.cat([values[layer], value], dim=2)
            new_keys.append(key[:, :, T:])
            new_values.append(value[:, :, T:])
            return key, value

        missing = torch.arange(M + T, device=input.device) < M - filled
        mask = torch.zeros(M + T, dtype=keys.dtype, device=input.device).masked_fill(missing, -torch.inf)
        window = attention_window(self.geometry)
        hidden = run_layers_with_cache(self.model, input, append, self.position_keys, window, mask)
        loss = self.loss(self.model, hidden, target)
        return loss, torch.stack(new_keys), torch.stack(new_values), (filled + T).clamp(max=M)

    @property
    def weight(self) -> Tensor:
        """A weight whose type and device are those of keys and values."""
        return self.model.layers[0].attention.qkv.weight

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and filled before the first segment."""
        attention, weight = self.model.layers[0].attention, self.weight
        shape = (len(self.model.layers), batch_size, attention.n_head, self.geometry.mem_len, attention.d_head)
        # Under autocast new keys are in half precision. In float32 the state would keep them at twice the size.
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        keys, values = (weight.new_zeros(shape, dtype=dtype) for _ in range(2))
        return keys, values, torch.zeros((), dtype=torch.long, device=weight.device)

    def example_arguments(self, batch_size: int) -> tuple[Tensor, ...]:
        """Arguments of `forward` to trace or export with."""
        ids = torch.arange(batch_size * self.geometry.tgt_len, device=self.weight.device)
        ids = (ids * 7919 % self.model.vocab_size).view(batch_size, -1)
        # The same tensor as input and target would become one argument of the program.
        return ids, ids.clone(), *self.initial_state(batch_size)


def traceable_loss(model: TransformerXL, hidden: Tensor, target: Tensor) -> Tensor:
    """As `TransformerXL.loss`, without a branch on how many targets fall into a cluster.

    hidden [B, T, D], target [B, T] -> nats [B, T].
    """
    shape, hidden, target = target.shape, hidden.flatten(0, 1), target.flatten()
    softmax, embedding = model.softmax, model.embedding
    spans, head_size = softmax.clusters.spans, softmax.clusters.spans[0][1] + softmax.clusters.n_tails
    columns = softmax.columns(embedding)
    head_target = target
    for i, (begin, end) in enumerate(spans[1:], start=1):
        head_target = torch.where((target >= begin) & (target < end), head_size - i, head_target)
    loss = -softmax.logits(hidden, 0, embedding, columns).log_softmax(-1).gather(1, head_target[:, None]).squeeze(1)
    for i, (begin, end) in enumerate(spans[1:], start=1):
        index = ((target >= begin) & (target < end)).nonzero().squeeze(1)
        log_prob = softmax.logits(hidden[index], i, embedding, columns).log_softmax(-1)
        loss = loss.index_add(0, index, -log_prob.gather(1, (target[index] - begin)[:, None]).squeeze(1))
    return loss.view(shape)


class FixedShapeProgram(nn.Module):
    """A CachedStep made into a faster function of the same arguments (`make_program`)."""

    def __init__(self, step: CachedStep, function: StepFunction):
        super().__init__()
        self.step, self.function = step, function
        self.eval()

    @torch.no_grad()
    def forward(
        self, input: Tensor, target: Tensor, state: tuple[Tensor, ...] | list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read one segment.

        Args:
            input: token ids [B, T'], T' at most tgt_len; shorter only at the end of a text.
            target: the tokens after them [B, T'].
            state: what the last call returned, or an empty list where a text starts.

        Returns:
            Losses [B, T'] in nats, and the state for the next segment.
        """
        T, length = self.step.geometry.tgt_len, input.shape[1]
        if length < T:
            input, target = (nn.functional.pad(ids, (0, T - length)) for ids in (input, target))
        state = state or self.step.initial_state(len(input))
        # Machine code made ahead of time relies on arguments that lie in memory as the example's did.
        loss, *new_state = self.function(input.long().contiguous(), target.long().contiguous(), *state)
        return loss[:, :length], tuple(new_state)


def make_program(
    step: CachedStep, runtime: Runtime, batch_size: int, path: str | None = None, trust: bool = False
) -> StepFunction:
    """The step compiled by torch.compile, traced to TorchScript, or compiled ahead of time by AOTInductor.

    A file can be loaded without this package, by `torch.jit.load` or `torch._inductor.aoti_load_package`.

    Args:
        step: what to compile; its lengths become fixed.
        runtime: compile, torchscript or export.
        batch_size: becomes fixed, too.
        path: load the program from this file if it exists; else write it, and beside it FILE.json, which says what
            the program was made for. None: keep no file.
        trust: load a file that somebody else wrote, too. Loading runs code from the file.

    Returns:
        A function of the step's arguments.

    Raises:
        ConfigError: If the file holds no such program, one that was made for other weights or lengths, or one that
            this user did not write.
    """
    if runtime is Runtime.compile:
        # Each number of targets in a cluster would need a program of its own, so the loss is not compiled.
        step.loss = torch.compiler.disable(TransformerXL.loss)
        compiled: StepFunction = torch.compile(step, dynamic=False)
        return compiled
    save = save_torchscript if runtime is Runtime.torchscript else save_aot_package
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "program.pt2"
            save(step, batch_size, file)
            return load_program(file, runtime)
    file, made_for = Path(path), describe_program(step, runtime, batch_size)
    if file.exists():
        check_description(file, made_for, trust)
    else:
        save(step, batch_size, file)
        write_json(description_file(file), made_for | {SIGNATURE: sign_program(file)}, indent=1)
    return load_program(file, runtime)  # measured as a later start will load it


def description_file(program: Path) -> Path:
    """The file beside a program that says what it was made for."""
    return program.with_name(program.name + ".json")


def describe_program(step: CachedStep, runtime: Runtime, batch_size: int) -> dict[str, Any]:
    """Everything that a program is fixed to: runtime, device, precision, lengths, batch size, weights."""
    kind, dtype = step.weight.device.type, step.weight.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    digest = hashlib.sha256()
    for name, tensor in sorted(step.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    fixed = {"runtime": runtime.name, "device": kind, "precision": str(dtype).removeprefix("torch.")}
    lengths: dict[str, Any] = to_dict(step.geometry)
    return fixed | {"batch_size": batch_size} | lengths | {"weights": digest.hexdigest()}


def check_description(file: Path, wanted: dict[str, Any], trust: bool) -> None:
    """Raises ConfigError if the program was made for something else, or was not written by this user (see `trust`)."""
    remedy = "remove it, or name another file"
    found = read_json(description_file(file))
    if not isinstance(found, dict):
        missing = f"program={file} has no {description_file(file).name}, which says what it was made for"
        raise ConfigError(f"{missing}; {remedy}") from None
    for key, value in wanted.items():
        if found.get(key) != value:
            difference = "other weights" if key == "weights" else f"{key}={found.get(key)}, not {value}"
            raise ConfigError(f"program={file} was made for {difference}; {remedy}")
    if not trust and not is_signed_program(file, found.get(SIGNATURE)):
        raise ConfigError(
            f"program={file} was not written by this user, or was changed since, and loading it runs code from it; "
            f"{remedy}, or use trust_program=true if you trust whoever wrote it"
        )


def load_program(file: Path, runtime: Runtime) -> StepFunction:
    """Load a program from its file. Raises ConfigError if the file holds no program of this runtime."""
    try:
        load: Callable[[str], StepFunction] = torch._inductor.aoti_load_package
        if runtime is Runtime.torchscript:
            load = torch.jit.load
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(str(file))
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"program={file} is no program of runtime={runtime.name} ({reason}); remove it") from None


def save_torchscript(step: CachedStep, batch_size: int, file: Path) -> None:
    """Write the step as TorchScript. torch calls TorchScript deprecated, with a warning that is not shown."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = step.example_arguments(batch_size)
        torch.jit.trace(step, arguments, check_trace=False).save(str(file))


def save_aot_package(step: CachedStep, batch_size: int, file: Path) -> None:
    """Write the step as an AOTInductor package (.pt2): machine code and weights."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(step, step.example_arguments(batch_size), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
