"""The options of `scheduler=`: the learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero, zero_or_more
from txl.config.training import MOST_STEPS


class SchedulerName(Enum):
    """The choices of `scheduler=`. All begin with a linear warm-up."""

    cosine = "cosine"  # half a cosine from optimizer.lr to eta_min
    linear = "linear"  # a line from optimizer.lr to eta_min
    inv_sqrt = "inv_sqrt"  # falls with the inverse square root of the step
    dev_perf = "dev_perf"  # falls by a factor when the validation loss no longer improves
    constant = "constant"

    @property
    def has_end(self) -> bool:
        """Whether the curve ends at a step, which is train.max_step unless scheduler.max_step says another one."""
        return self in (SchedulerName.cosine, SchedulerName.linear)


@dataclass
class SchedulerConfig:
    """The learning rate as a function of the step."""

    name: SchedulerName = MISSING  # the shape of the schedule
    warmup_step: int = zero_or_more(most=MOST_STEPS)  # steps in which the learning rate rises from 0; 0: none
    max_step: int | None = above_zero(None, most=MOST_STEPS)  # where cosine and linear end; null: at train.max_step
    eta_min: float = zero_or_more()  # learning rate at the end of cosine and linear
    decay_rate: float | None = None  # dev_perf: factor on the learning rate ...
    patience: int | None = zero_or_more(None)  # ... after more than this number of validations without improvement
    lr_min: float | None = zero_or_more(None)  # dev_perf: the learning rate does not fall below this
    first_update_at_base_lr: bool = (
        MISSING  # as the reference: update n+1 has step n's rate, the first one optimizer.lr
    )
