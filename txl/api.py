"""The public Python API: `txl.load` and what it returns. See docs/python.md."""

import os
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import torch

from txl.config.machine_rules import check_cpu_arithmetic
from txl.config.precision import Arithmetic
from txl.config.schema import Runtime
from txl.errors import ConfigError, refuse_unless
from txl.evaluate.load_model import evaluation_geometry, load_trained_model
from txl.evaluate.score import Score
from txl.evaluate.trained_model import Model
from txl.system.precision import parameter_dtype, set_matmul_precision

__all__ = ["Model", "Score", "load"]

Choice = TypeVar("Choice", bound=Enum)


@dataclass
class _Lengths:
    """Lengths to read with; None: those of the recipe's evaluation."""

    tgt_len: int | None
    mem_len: int | None
    clamp_len: int | None
    same_length: bool | None
    ext_len: int | None = None
    batch_size: int | None = None


def load(
    checkpoint: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    runtime: str = "auto",
    tgt_len: int | None = None,
    mem_len: int | None = None,
    clamp_len: int | None = None,
    same_length: bool | None = None,
) -> Model:
    """Load a trained model.

    Args:
        checkpoint: a run folder (its best checkpoint), one of its checkpoints, a folder with one run below it, an
            imported model, a folder that `txl export` wrote as safetensors, or `latest`.
        device: where the model goes: cpu, cuda, cuda:1, ...; auto: the GPU if there is one.
        precision: of the matrix products: fp64, fp32, tf32, bf16 or fp16.
        runtime: auto, eager or cached; auto caches keys and values if the model allows it.
        tgt_len: tokens that are read at once.
        mem_len: tokens that are remembered.
        clamp_len: the largest distance between tokens that is told apart; -1: all.
        same_length: every token sees the same number of tokens before it.

    Lengths that are not given are those of the evaluation that was published with the run's recipe.

    Returns:
        The model, ready to score and generate.

    Raises:
        ConfigError: if the folder holds no intact checkpoint, or an option has no such value.
    """
    place = _device(device)
    arithmetic = _choice("precision", precision, Arithmetic)
    if place.type == "cpu":
        check_cpu_arithmetic(arithmetic, "this machine" if device == "auto" else f"device={device}")
    set_matmul_precision(arithmetic)
    loaded = load_trained_model(os.fspath(checkpoint), place, parameter_dtype(arithmetic))
    refuse_unless(tgt_len is None or tgt_len > 0, "tgt_len", tgt_len, "must be above 0")
    refuse_unless(mem_len is None or mem_len >= 0, "mem_len", mem_len, "must be 0 or more")
    lengths = _Lengths(tgt_len, mem_len, clamp_len, same_length)
    geometry, _ = evaluation_geometry(lengths, loaded)
    return Model(loaded, geometry, _choice("runtime", runtime, Runtime), arithmetic)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device} is no device of torch; use auto, cpu, cuda or cuda:1") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch {torch.__version__} finds no usable CUDA device; use device='cpu'")
    return place


def _choice(key: str, value: str, choices: type[Choice]) -> Choice:
    try:
        return choices[value]
    except KeyError:
        names = ", ".join(choice.name for choice in choices)
        raise ConfigError(f"{key}={value} must be one of {names}") from None
