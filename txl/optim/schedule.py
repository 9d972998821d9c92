"""The learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from txl.config.scheduler import SchedulerConfig, SchedulerName


@dataclass
class Plateau:
    """What the `dev_perf` schedule remembers: the factor on the base rate, and how it got there."""

    factor: float = 1.0
    best: float = math.inf
    bad_validations: int = 0

    def update(self, valid_loss: float, config: SchedulerConfig) -> None:
        """After a validation: a loss that did not fall by 0.01 % for longer than `patience` lowers the rate.

        Other schedules remember nothing.
        """
        if config.name is not SchedulerName.dev_perf:
            return
        if valid_loss < self.best * (1 - 1e-4):
            self.best, self.bad_validations = valid_loss, 0
            return
        self.bad_validations += 1
        if self.bad_validations > config.patience:
            self.factor, self.bad_validations = self.factor * config.decay_rate, 0


def lr_at(step: int, config: SchedulerConfig, base_lr: float, max_step: int, plateau: Plateau) -> float:
    """Learning rate after `step` updates. `max_step`: the step at which the cosine ends."""
    warmup = config.warmup_step
    if config.name is SchedulerName.inv_sqrt:
        if step == 0 and warmup == 0:
            return base_lr
        return base_lr * (step**-0.5 if step > warmup else step / warmup**1.5)
    if step < warmup:
        return base_lr * step / warmup
    if config.name is SchedulerName.cosine:
        progress = min(1.0, (step - warmup) / max(1, max_step - warmup))
        return config.eta_min + (base_lr - config.eta_min) * (1 + math.cos(math.pi * progress)) / 2
    if config.name is SchedulerName.dev_perf:
        return max(config.lr_min, base_lr * plateau.factor)
    return base_lr


def lr_of_update(done: int, config: SchedulerConfig, base_lr: float, max_step: int, plateau: Plateau) -> float:
    """Rate of the update that follows `done` updates.

    The reference sets the rate *after* each update: update n + 1 uses lr_at(n), and the very first one the full
    base rate. Under LAMB that kick is what starts the zero-initialised biases, so the published recipes keep it
    (`scheduler.first_update_at_base_lr`). Without it, update n uses lr_at(n).
    """
    if not config.first_update_at_base_lr:
        done += 1
    elif done == 0:
        return base_lr
    return lr_at(done, config, base_lr, max_step, plateau)
