"""The options of `optimizer=`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class OptimizerName(Enum):
    lamb = "lamb"
    adam = "adam"
    sgd = "sgd"
    adagrad = "adagrad"


@dataclass
class OptimizerConfig:
    name: OptimizerName = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = field(default_factory=list)  # lamb, adam
    eps: float | None = None  # lamb, adam, adagrad
    momentum: float | None = None  # sgd
