"""The options of `precision=`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Arithmetic(Enum):
    fp64 = "fp64"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class PrecisionConfig:
    name: Arithmetic = MISSING
    initial_loss_scale: float | None = None  # fp16 only
