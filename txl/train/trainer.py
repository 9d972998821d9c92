"""The training loop of one rank, and everything that a checkpoint holds of it."""

import logging
import math
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from txl.checkpoint.checkpoint_files import damage_reported, read_checkpoint_file, read_memory_columns
from txl.checkpoint.find import MANIFEST, read_document
from txl.checkpoint.store import Checkpoints
from txl.checkpoint.weights import load_weights
from txl.config.compose import to_dict
from txl.config.geometry import valid_geometry
from txl.config.resume_changes import final_evaluations
from txl.config.schema import RunConfig
from txl.data.corpus import Corpus
from txl.data.sentence_batches import training_stream
from txl.evaluate.loss import evaluate_split
from txl.evaluate.targets import missed_training_targets
from txl.optim.groups import check_state_shapes
from txl.optim.schedule import LearningRate
from txl.plan.run_plan import Plan
from txl.system.devices import use_deterministic_kernels
from txl.system.hang_watch import note_progress
from txl.system.precision import set_matmul_precision
from txl.system.process_exit import DIVERGED, MISSED_TARGET
from txl.system.timing import PausableClock
from txl.system.world import World, columns_of
from txl.tracking.metrics_gaps import missing_at_the_end
from txl.tracking.tracker import Tracker
from txl.train.divergence import BatchPlace, DivergedError
from txl.train.final_evaluation import FinalEvaluation
from txl.train.optimizer_step import OptimizerStep
from txl.train.requests import TIME_LIMIT, Requests
from txl.train.rollback import DivergenceHandling
from txl.train.train_state import TrainState, random_state, restore_random_state, seed_everything

log = logging.getLogger(__name__)


class Trainer:
    """One run on one rank."""

    def __init__(
        self, config: RunConfig, plan: Plan, corpus: Corpus, world: World, device: torch.device, tracker: Tracker
    ):
        """Build everything that the run needs, at step 0.

        Args:
            config: the run.
            plan: what was derived from it.
            corpus: the data set.
            world: which rank this is.
            device: where it trains.
            tracker: what it is told of the run's progress.
        """
        self.config, self.plan, self.corpus, self.world, self.device = config, plan, corpus, world, device
        self.tracker, self.run_dir, self.precision = tracker, Path(plan.run_dir), config.precision.name
        set_matmul_precision(self.precision)
        use_deterministic_kernels(config.deterministic)
        first = config.train.first_rank_batch_size
        self.columns = columns_of(world.rank, world.world_size, config.train.batch_size, first)
        seed_everything(config.seed)
        self.optimizer_step = OptimizerStep(
            config, len(corpus.vocab), len(self.columns), plan.micro_batch_size, world, device
        )
        self.model = self.optimizer_step.model
        seed_everything(config.seed + 1_000_003 * world.rank)  # dropout of other columns must differ
        self.stream = training_stream(corpus, config.train, config.seed, self.columns)
        self.state = TrainState()
        self.checkpoints = Checkpoints(
            self.run_dir / "checkpoints", world, config.checkpoint.keep, config.checkpoint.save_all
        )
        self.restored = False  # from a checkpoint
        self.clock = PausableClock()
        self.counted = self.logged = self.clock.now()  # when train_seconds, and the log, were last brought up to date
        self.timed_step = 0  # the step at the time `logged`
        self.requests = Requests(config.train.time_limit_minutes, config.checkpoint.minutes, world.is_main)
        self.divergence_handling = DivergenceHandling(self)
        self.before_save: Callable[[], None] | None = None  # rank 0 calls it before it saves a checkpoint

    # ------------------------------------------------------------------ the loop

    def train(self) -> int:
        """Train to max_step, then validate, test and write the summary; or stop early for a signal or the time limit.

        Returns the exit code of the process.
        """
        self._start()
        try:
            while True:
                try:
                    return self._train_to_the_end()
                except DivergedError as error:
                    self.divergence_handling.dump()
                    if not self.divergence_handling.roll_back(error):
                        raise
                    self.tracker.rewind(self.state.step)
                    self._start_clocks()
        except DivergedError as error:
            log.error("%s", error)
            self.tracker.close(DIVERGED)
            return DIVERGED
        except BaseException:
            self.tracker.close(1)
            raise

    def _train_to_the_end(self) -> int:
        config = self.config
        while self.state.step < config.train.max_step and not self.requests.stop:
            self.step()
            if self.state.step % config.train.log_interval == 0:
                self.log_step()
            if config.valid.enabled and self._is_due(config.valid.interval):
                self.validate()
            elif self.state.step < config.train.max_step and self._is_save_due():
                self.save()
            self.requests.exchange(self.state.step)
        self.requests.finish()
        self._count_seconds()
        if self.state.step < config.train.max_step:
            return self._stop_early(self.requests.stop)
        return self._finish()

    def step(self) -> None:
        """One optimizer step. The host does not wait for the device."""
        state, batch = self.state, self.stream.next()
        if 0 < state.step == self.config.train.mem_from_step and self.config.train.mem_len:
            log.info("From here on the memory is used (train.mem_from_step): steps take longer")
        lr = self._learning_rate.of_update(state.step)
        place = BatchPlace(state.step + 1, self.stream.last_epoch, self.stream.last_index, lr)
        self.optimizer_step.divergence.note_place(place)
        tokens = self.optimizer_step.run(batch, state.step, lr)
        note_progress(is_step=True)
        state.step += 1
        state.tokens_seen += tokens
        self.tracker.progress(state.step)

    @property
    def _learning_rate(self) -> LearningRate:
        config = self.config
        base_lr = config.optimizer.lr * self.state.lr_factor
        return LearningRate(config.scheduler, base_lr, config.curve_steps, self.state.plateau)

    # ------------------------------------------------------------------ between steps

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.state.step % interval == 0

    def _is_save_due(self) -> bool:
        return self._is_due(self.config.checkpoint.interval) or self.requests.save

    def log_step(self) -> None:
        """Log the steps since the last log line. Reading the loss makes the host wait for the device. Collective.

        Raises DivergedError if the loss or the gradient is not finite.
        """
        nats, tokens = self.optimizer_step.take_window()
        grad_norm, loss_scale = self.optimizer_step.grad_norm.item(), self.optimizer_step.loss_scale()
        now, state = self.clock.now(), self.state
        timed_steps, seconds = state.step - self.timed_step, now - self.logged
        steps, state.logged_step = state.step - state.logged_step, state.step
        self.logged, self.timed_step = now, state.step
        loss = nats / max(1.0, tokens)
        spike = state.spikes.add(loss)
        self.tracker.train_step(
            epoch=self.stream.last_epoch,
            step=state.step,
            batch=self.stream.last_index + 1,
            n_batches=self.stream.n_batches,
            lr=self._learning_rate.at(state.step),
            ms_per_batch=1000 * seconds / max(1, timed_steps),
            tokens_per_second=tokens / seconds,
            loss=loss,
            grad_norm=grad_norm,
            tokens_seen=state.tokens_seen,
            steps=steps,
            loss_scale=loss_scale,
            skipped_steps=self._count_skipped_steps() if self.optimizer_step.skips_steps else None,
            rollbacks=len(state.rollbacks) or None,
            spike=state.spikes.is_spike or None,
        )
        if spike is not None:
            log.warning("step %d: %s (gradient norm %.3g)", state.step, spike, grad_norm)
        self.optimizer_step.check_logged(nats, grad_norm)

    def validate(self) -> None:
        """Evaluate the validation split, let the plateau schedule decide, and save a checkpoint. Collective."""
        config, state = self.config, self.state
        with self.clock.paused():
            result = evaluate_split(
                self.model,
                self.corpus,
                "valid",
                valid_geometry(config),
                config.valid.batch_size,
                self.precision,
                self.world,
                config.valid.max_steps,
            )
            is_best = result.loss < state.best_valid_loss  # never a loss that is not finite
            if is_best:
                state.best_valid_loss, state.best_step = result.loss, state.step
            state.plateau.update(result.loss, config.scheduler)
            state.validated_step = state.step
            self.tracker.validation(step=state.step, is_best=is_best, **result.measured())
        if not math.isfinite(result.loss) and self.optimizer_step.loss_scale() is None:
            raise self.optimizer_step.diverged("its validation loss is not finite")
        self.save(best=is_best)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint. With `best`, `checkpoints/best` names it afterwards. Collective.

        Raises DivergedError, and leaves the earlier checkpoints as they are, if the training has diverged.
        """
        self.optimizer_step.check_finite()
        if self.config.debug:
            return
        if self.before_save is not None:
            self.before_save()
        self._count_seconds()
        with self.clock.paused():
            self.tracker.sync()
            self.checkpoints.save(self.state.step, *self._snapshot(), best)
        self.requests.note_saved(self.state.step)
        self.divergence_handling.note_checkpoint(self.state.step)

    def _count_skipped_steps(self) -> int:
        """The steps of this run that were skipped. Waits for the device."""
        self.state.skipped_steps += self.optimizer_step.divergence.take_skipped_steps()
        return self.state.skipped_steps

    def _count_seconds(self) -> None:
        """Add the seconds since the last call to the state. Validation and saving do not count as training."""
        now = self.clock.now()
        self.state.train_seconds += now - self.counted
        self.counted = now

    # ------------------------------------------------------------------ what a checkpoint holds

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
        """Everything needed to continue bit by bit: what all ranks share, what this rank alone has, and documents."""
        self._count_skipped_steps()
        step = self.optimizer_step
        shared = {"model": step.model.state_dict(), "optimizer": step.optimizer.state_dict()}
        shard = {
            "columns": [self.columns.start, self.columns.stop],
            "mems": step.mems.to_tensor(),
            "rng": random_state(self.device),
            "window": step.window,
        }
        documents = {
            "run.json": to_dict(self.config),
            "state.json": asdict(self.state)
            | {"stream": self.stream.state_dict(), "scaler": step.scaler.state_dict()}
            | {"data": self.corpus.fingerprint, "vocabulary": self.corpus.vocab.fingerprint},
            "vocabulary.json": self.corpus.vocab.to_dict(),
        }
        return shared, shard, documents

    def restore(self, folder: Path, changed: dict[str, Any] | None = None) -> None:
        """Continue where a checkpoint was written. Its files and its configuration have been checked already.

        `changed`: entries of its state.json that have other values.
        """
        with damage_reported(folder):
            self._restore_from(folder, changed or {})
        if not self.checkpoints.rewind(self.state.step, self.state.best_step, folder):
            self.state.best_valid_loss, self.state.best_step = math.inf, 0  # the best checkpoint is lost
        self.restored = True
        if changed is None:
            self.divergence_handling.note_checkpoint(self.state.step)

    def _restore_from(self, folder: Path, changed: dict[str, Any]) -> None:
        manifest, step = read_document(folder, MANIFEST), self.optimizer_step
        saved = read_document(folder, "state.json") | changed
        del saved["data"], saved["vocabulary"]
        load_weights(step.model, read_checkpoint_file(folder, "model.pt", self.device), str(folder))
        step.optimizer.load_state_dict(read_checkpoint_file(folder, "optimizer.pt", self.device))
        check_state_shapes(step.optimizer)
        self.stream.load_state_dict(saved.pop("stream"))
        step.scaler.load_state_dict(saved.pop("scaler"))
        self.state = TrainState.from_dict(saved)
        step.window.zero_()
        step.mems.load_tensor(read_memory_columns(folder, self.columns))
        if manifest["world_size"] == self.world.world_size:
            shard = read_checkpoint_file(folder, f"rank_{self.world.rank}.pt", self.device)
            step.window.copy_(shard["window"])
            restore_random_state(shard["rng"], self.device)

    # ------------------------------------------------------------------ beginning and end

    def _start(self) -> None:
        if not self.restored and not self.config.debug:
            self.checkpoints.rewind(0, 0)  # what lies there is damaged, or belongs to another run
        self.tracker.rewind(self.state.step)
        if self.restored and self.world.is_main:
            expected = {"train": self.state.logged_step, "valid": self.state.validated_step}
            for note in missing_at_the_end(self.run_dir / "metrics.jsonl", expected):
                log.warning("%s", note)
        self.requests.listen(self.state.step)
        self._start_clocks()

    def _start_clocks(self) -> None:
        self.model.train()
        self.counted = self.logged = self.clock.now()
        self.timed_step = self.state.step

    def _stop_early(self, stop: int) -> int:
        """Save and say how to continue; returns the exit code."""
        self.save()
        reason = "time limit" if stop == TIME_LIMIT else signal.Signals(stop).name
        saved = "nothing was saved: debug=true" if self.config.debug else "saved. Continue with resume=auto"
        self.tracker.message(f"Stopped at step {self.state.step} ({reason}); {saved}")
        code = 0 if stop == TIME_LIMIT else 128 + stop
        self.tracker.close(code)
        return code

    def _finish(self) -> int:
        """Validate unless that was just done, evaluate the best weights, write the summary; returns the exit code."""
        config, state = self.config, self.state
        if not config.valid.enabled:
            self.save()
        elif state.validated_step != state.step:
            self.validate()
        # All is saved. From here on submitit may requeue the job at once: the next start comes to this point again.
        self.requests.release(signal.SIGUSR2)
        if stop := self.requests.stop_signal_of_any_rank():
            return self._stop_early(stop)  # it came with the last step, or during the validation
        if state.best_step and not config.debug:
            best = self.checkpoints.of_step(state.best_step)
            self.model.load_state_dict(read_checkpoint_file(best, "model.pt", self.device))
        values = state.results() | {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **({"skipped_steps": state.skipped_steps} if self.optimizer_step.skips_steps else {}),
            "run_dir": str(self.run_dir),
            "final_evaluations": final_evaluations(config),
        }
        evaluation = FinalEvaluation(config, self.corpus, self.model, self.world, self.tracker)
        values |= evaluation.evaluate(state.best_step)
        self.tracker.summary(values)
        missed = missed_training_targets(config, values)
        for line in missed:
            self.tracker.message(line)
        code = MISSED_TARGET if missed else 0
        self.tracker.close(code)
        return code
