"""What a training does when it has diverged: it writes a dump, and may go back to its last checkpoint."""

import logging
from pathlib import Path
from typing import Any, Protocol

from txl.checkpoint.store import Checkpoints
from txl.config.schema import RunConfig
from txl.config.training import OnDivergence
from txl.data.batches import BatchStream
from txl.system.world import World
from txl.train.divergence import DivergedError
from txl.train.divergence_dump import DUMP, write_divergence_dump
from txl.train.optimizer_step import OptimizerStep
from txl.train.train_state import TrainState

log = logging.getLogger(__name__)


class Training(Protocol):
    """What is needed of a `Trainer`."""

    config: RunConfig
    world: World
    run_dir: Path
    state: TrainState
    optimizer_step: OptimizerStep
    stream: BatchStream
    checkpoints: Checkpoints

    def restore(self, folder: Path, changed: dict[str, Any] | None = None) -> None:
        """Continue where a checkpoint was written, with other values of some entries of its state.json."""


class DivergenceHandling:
    """Knows what training went on from last: a checkpoint, and what a rollback changed of its state."""

    def __init__(self, trainer: Training):
        self._trainer = trainer
        self._step = 0  # of the checkpoint; 0: the beginning
        self._changed: dict[str, Any] = {}  # entries of its state.json

    def note_checkpoint(self, step: int) -> None:
        """The run was restored from this step's checkpoint, or saved it."""
        self._step, self._changed = step, {}

    def dump(self) -> None:
        """Write what `txl replay` needs, on rank 0. The dump of a replay would be the same: there is none."""
        trainer = self._trainer
        if not trainer.world.is_main or trainer.config.debug or (trainer.run_dir.parent / DUMP).exists():
            return
        place = trainer.optimizer_step.divergence.first_place()
        folder = trainer.run_dir / "divergence" / f"step_{place.step}"
        try:
            write_divergence_dump(
                folder, trainer.config, place, trainer.state.step, self._checkpoint(), dict(self._changed)
            )
        except OSError as error:  # the run ends with the reason that matters
            log.warning("%s cannot be written: %s", folder, error.strerror)
            return
        log.info("to repeat the step: txl replay %s", folder)

    def roll_back(self, error: DivergedError) -> bool:
        """Go back to the last checkpoint, if that is asked for and possible; returns whether. Collective.

        Weights, optimizer and generators are those of the checkpoint. The text goes on behind the batches that were
        read, and the learning rate is lower from now on.
        """
        trainer, state, options = self._trainer, self._trainer.state, self._trainer.config.train
        if options.on_divergence is not OnDivergence.rollback:
            return False
        checkpoint = self._checkpoint()
        if checkpoint is None or len(state.rollbacks) >= options.max_rollbacks:
            log.warning("no rollback: %s", "nothing was saved yet" if checkpoint is None else "train.max_rollbacks")
            return False
        place, stream = trainer.optimizer_step.divergence.first_place(), trainer.stream.state_dict()
        rollback = {"from_step": state.step, "to_step": self._step, "epoch": place.epoch, "batch": place.batch}
        self._changed = {
            "stream": stream,
            "lr_factor": state.lr_factor * options.rollback_lr,
            "rollbacks": [*state.rollbacks, rollback],
        }
        trainer.restore(checkpoint, self._changed)
        trainer.optimizer_step.forget_divergence()
        log.warning(
            "%s; rollback %d of at most %d: back to step %d, behind epoch %d batch %d, with %g times the learning rate",
            error,
            len(trainer.state.rollbacks),
            options.max_rollbacks,
            trainer.state.step,
            trainer.stream.last_epoch,
            trainer.stream.last_index,
            trainer.state.lr_factor,
        )
        return True

    def _checkpoint(self) -> Path | None:
        return self._trainer.checkpoints.of_step(self._step) if self._step else None
