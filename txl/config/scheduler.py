"""The options of `scheduler=`: the learning rate's curve."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class SchedulerName(Enum):
    cosine = "cosine"
    inv_sqrt = "inv_sqrt"
    dev_perf = "dev_perf"
    constant = "constant"


@dataclass
class SchedulerConfig:
    name: SchedulerName = MISSING
    warmup_step: int = MISSING
    max_step: int | None = None  # length of the curve; null: train.max_step
    eta_min: float = MISSING  # where the cosine ends
    decay_rate: float | None = None  # dev_perf: factor on the rate after more than
    patience: int | None = None  # this many validations without progress,
    lr_min: float | None = None  # and its lower end
    first_update_at_base_lr: bool = MISSING  # as the reference: update n+1 uses lr_at(n), the first the base rate
