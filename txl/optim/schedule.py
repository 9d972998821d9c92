"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass

from txl.config.scheduler import SchedulerConfig, SchedulerName


@dataclass
class Plateau:
    """State of the `dev_perf` schedule. The other schedules have none."""

    factor: float = 1.0  # factor on the base rate
    best: float = math.inf  # lowest validation loss so far
    bad_validations: int = 0  # validations in a row that were not better

    def update(self, valid_loss: float, config: SchedulerConfig) -> None:
        """Call this after every validation.

        A loss is better if it is at least 0.01 % below the best one. After more than `patience` validations in a row
        that were not better, the factor is multiplied by `decay_rate`. With other schedules nothing happens.
        """
        if config.name is not SchedulerName.dev_perf:
            return
        assert config.patience is not None and config.decay_rate is not None  # rules.py requires both
        if valid_loss < self.best * (1 - 1e-4):
            self.best, self.bad_validations = valid_loss, 0
            return
        self.bad_validations += 1
        if self.bad_validations > config.patience:
            self.factor, self.bad_validations = self.factor * config.decay_rate, 0


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of the step."""

    config: SchedulerConfig  # kind and options of the schedule
    base_lr: float  # rate at the end of the warm-up
    max_step: int  # step at which cosine and linear end
    plateau: Plateau  # state of `dev_perf`

    def at(self, step: int) -> float:
        """Rate after `step` updates."""
        config, base_lr, warmup = self.config, self.base_lr, self.config.warmup_step
        if config.name is SchedulerName.inv_sqrt:
            if step == 0 and warmup == 0:
                return base_lr
            return base_lr * (math.pow(step, -0.5) if step > warmup else step / math.pow(warmup, 1.5))
        if step < warmup:
            return base_lr * step / warmup
        if config.name.has_end:
            progress = min(1.0, (step - warmup) / max(1, self.max_step - warmup))
            if config.name is SchedulerName.linear:
                return base_lr + (config.eta_min - base_lr) * progress
            return config.eta_min + (base_lr - config.eta_min) * (1 + math.cos(math.pi * progress)) / 2
        if config.name is SchedulerName.dev_perf:
            assert config.lr_min is not None  # rules.py requires it
            return max(config.lr_min, base_lr * self.plateau.factor)
        return base_lr

    def of_update(self, updates_done: int) -> float:
        """Rate of the update that follows `updates_done` updates.

        The reference sets the rate *after* each update. So its update n + 1 uses `at(n)`, and its very first one the
        full base rate. Under LAMB this first update is what moves the biases away from zero, so the published recipes
        keep it (`scheduler.first_update_at_base_lr`). Without this option, update n uses `at(n)`.
        """
        if not self.config.first_update_at_base_lr:
            return self.at(updates_done + 1)
        return self.base_lr if updates_done == 0 else self.at(updates_done)
