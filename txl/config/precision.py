"""The options of `precision=`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero


class Arithmetic(Enum):
    """The choices of `precision=`. Parameters are float32, in fp64 float64."""

    fp64 = "fp64"
    fp32 = "fp32"
    tf32 = "tf32"  # float32 numbers, products on TF32 tensor cores
    bf16 = "bf16"  # products in bfloat16
    fp16 = "fp16"  # products in float16, with dynamic loss scaling

    @property
    def is_half(self) -> bool:
        """Whether activations have two bytes."""
        return self in (Arithmetic.bf16, Arithmetic.fp16)

    @property
    def parameter_bytes(self) -> int:
        """Size of a parameter, of its gradient, and of each number that the optimizer keeps for it."""
        return 8 if self is Arithmetic.fp64 else 4


@dataclass
class PrecisionConfig:
    """The arithmetic."""

    name: Arithmetic = MISSING  # the arithmetic
    initial_loss_scale: float | None = above_zero(None)  # fp16 only
