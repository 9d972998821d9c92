"""The training loop of one rank, and everything that a checkpoint holds of it."""

import contextlib
import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from txl.checkpoint.checkpoint_files import MANIFEST, read_checkpoint_file, read_memory_columns
from txl.checkpoint.store import Checkpoints
from txl.config.compose import to_dict
from txl.config.geometry import train_geometry, valid_geometry
from txl.config.schema import RunConfig
from txl.data.corpus import Corpus
from txl.data.sentence_batches import training_stream
from txl.evaluate.loss import evaluate_split
from txl.model.sampled_softmax import prepare_sampled_softmax
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients
from txl.optim.schedule import lr_at, lr_of_update
from txl.plan.run_plan import Plan
from txl.system.devices import copy_to_device
from txl.system.distributed import average_sparse_gradient, sum_over_ranks
from txl.system.hang_watch import note_progress
from txl.system.precision import autocast, loss_scaler, set_matmul_precision
from txl.system.timing import PausableClock
from txl.system.world import World, columns_of
from txl.tracking.tracker import Tracker
from txl.train.final_evaluation import FinalEvaluation
from txl.train.memories import BatchMemories
from txl.train.model_with_loss import ModelWithLoss, average_gradients_over_ranks, build_model
from txl.train.requests import TIME_LIMIT, Requests
from txl.train.train_state import TrainState, random_state, restore_random_state, seed_everything


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
        self.tracker = tracker
        self.run_dir = Path(plan.run_dir)
        self.geometry, self.precision = train_geometry(config), config.precision.name
        set_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(config.deterministic)
        seed_everything(config.seed)
        self.model = build_model(config, len(corpus.vocab), device)
        self.sampler, self.sparse_tables = prepare_sampled_softmax(
            self.model, config.train.sampled_softmax, config.seed
        )
        self.optimizer: Any = build_optimizer(config.optimizer, self.model.named_parameters(), self.sparse_tables)
        self.scaler = loss_scaler(config.precision, device)
        with_loss = ModelWithLoss(self.model)
        self.model_with_loss: nn.Module = with_loss
        if world.world_size > 1:
            self.model_with_loss = average_gradients_over_ranks(with_loss, device, self.sparse_tables)
        seed_everything(config.seed + 1_000_003 * world.rank)  # dropout of other columns must differ
        first = config.train.first_rank_batch_size
        self.columns = columns_of(world.rank, world.world_size, config.train.batch_size, first)
        self.stream = training_stream(corpus, config.train, config.seed, self.columns)
        # The number may differ between ranks, and the last micro-batch of the first rank may be smaller.
        self.n_micro_batches = -(-len(self.columns) // plan.micro_batch_size)
        self.mems = BatchMemories(self.n_micro_batches, plan.micro_batch_size, device, config.train.swap_mem)
        self.state = TrainState()
        self.window = torch.zeros(2, dtype=torch.float64, device=device)  # nats and tokens since the last log line
        self.clipped: list[Tensor] = [p for name, p in self.model.named_parameters() if self._is_clipped(name)]
        self.checkpoints = Checkpoints(
            self.run_dir / "checkpoints", world, config.checkpoint.keep, config.checkpoint.save_all
        )
        self.clock = PausableClock()
        self.counted = self.logged = self.clock.now()  # when train_seconds, and the log, were last brought up to date
        self.logged_step = 0
        self.requests = Requests(config.train.time_limit_minutes, config.checkpoint.minutes, world.is_main)
        self.before_save: Callable[[], None] | None = None  # rank 0 calls it before it saves a checkpoint
        self.on_part_done: Callable[[str], None] = lambda part: None  # is called after every part of a step

    def _is_clipped(self, name: str) -> bool:
        return not (self.config.train.clip_nonemb and name.startswith(("embedding.", "softmax.weights.")))

    # ------------------------------------------------------------------ the loop

    def train(self) -> int:
        """Train to max_step, then validate, test and write the summary; or stop early for a signal or the time limit.

        Returns the exit code of the process.
        """
        config, state = self.config, self.state
        self._start()
        try:
            while state.step < config.train.max_step and not self.requests.stop:
                self.step()
                if state.step % config.train.log_interval == 0:
                    self.log_step()
                if config.valid.enabled and self._is_due(config.valid.interval):
                    self.validate()
                elif state.step < config.train.max_step and self._is_save_due():
                    self.save()
                self.requests.exchange(state.step)
            self.requests.finish()
            self._count_seconds()
            if state.step < config.train.max_step:
                return self._stop_early(self.requests.stop)
            return self._finish()
        except BaseException:
            self.tracker.close(1)
            raise

    def step(self) -> None:
        """One optimizer step: every micro-batch forward and backward, then clip and update.

        The host does not wait for a GPU here: while the GPU computes, the host prepares the next batch.
        """
        config, state, plan = self.config, self.state, self.plan
        batch = self.stream.next()
        input = copy_to_device(batch.input, self.device).split(plan.micro_batch_size)
        target = copy_to_device(batch.target, self.device).split(plan.micro_batch_size)
        host_target = batch.target.split(plan.micro_batch_size)
        tokens = config.train.batch_size * batch.target.shape[1]  # of all ranks
        sample = self.sampler.draw(state.step).to(self.device) if self.sampler else None
        scale = self.world.world_size / tokens  # DistributedDataParallel averages over ranks; the mean is over tokens
        for i in range(self.n_micro_batches):
            groups = self.model.softmax.clusters.sort_tokens(host_target[i].flatten()).to(self.device)
            self.on_part_done("input")
            with self._gradients_stay_local(unless=i == self.n_micro_batches - 1):
                with autocast(self.precision, self.device):
                    loss, nats, mems = self.model_with_loss(
                        input[i], target[i], self.mems.get(i), self.geometry, scale, groups, sample
                    )
                self.on_part_done("forward")
                note_progress()
                self.scaler.scale(loss).backward()
                self.mems.set(i, mems)  # after the backward pass, which has read the old ones
            self.window += torch.stack([nats, torch.full_like(nats, target[i].numel())])
            self.on_part_done("backward")
        self._update()
        self.on_part_done("optimizer")
        note_progress(is_step=True)
        state.step += 1
        state.tokens_seen += tokens
        self.tracker.progress(state.step)

    def _gradients_stay_local(self, unless: bool) -> AbstractContextManager[None]:
        """Under it, a backward pass adds to the gradients of this rank only; the last one of a step averages them."""
        if isinstance(self.model_with_loss, DistributedDataParallel) and not unless:
            return self.model_with_loss.no_sync()
        return contextlib.nullcontext()

    def _update(self) -> None:
        """Clip the gradients, update the weights, and forget the gradients."""
        for table in self.sparse_tables:
            assert table.grad is not None
            table.grad = average_sparse_gradient(table.grad)
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = clip_gradients(self.optimizer, self.clipped, self.config.train.clip)
        lr = self._learning_rate(lr_of_update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _learning_rate(self, rule: Callable[..., float]) -> float:
        config, state = self.config, self.state
        max_step = config.scheduler.max_step or config.train.max_step
        return rule(state.step, config.scheduler, config.optimizer.lr, max_step, state.plateau)

    # ------------------------------------------------------------------ between steps

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.state.step % interval == 0

    def _is_save_due(self) -> bool:
        return self._is_due(self.config.checkpoint.interval) or self.requests.save

    def log_step(self) -> None:
        """Log the steps since the last log line. Reading the loss makes the host wait for the device."""
        nats, tokens = sum_over_ranks(self.window.clone()).tolist()
        now, state = self.clock.now(), self.state
        steps, seconds = state.step - self.logged_step, now - self.logged
        self.window.zero_()
        self.logged, self.logged_step = now, state.step
        self.tracker.train_step(
            epoch=self.stream.last_epoch,
            step=state.step,
            batch=self.stream.last_index + 1,
            n_batches=self.stream.n_batches,
            lr=self._learning_rate(lr_at),
            ms_per_batch=1000 * seconds / max(1, steps),
            tokens_per_second=tokens / seconds,
            loss=nats / max(1.0, tokens),
            grad_norm=self.grad_norm.item(),
            tokens_seen=state.tokens_seen,
            loss_scale=self.scaler.get_scale() if self.scaler.is_enabled() else None,
        )

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
            is_best = result.loss < state.best_valid_loss or state.best_step == 0 or math.isnan(state.best_valid_loss)
            if is_best:
                state.best_valid_loss, state.best_step = result.loss, state.step
            state.plateau.update(result.loss, config.scheduler)
            state.validated_step = state.step
            self.tracker.validation(
                step=state.step,
                seconds=result.seconds,
                loss=result.loss,
                tokens=result.tokens,
                geometry=result.geometry,
                batch_size=result.batch_size,
                is_best=is_best,
            )
        self.save(best=is_best)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint. With `best`, `checkpoints/best` names it afterwards. Collective."""
        if self.config.debug:
            return
        if self.before_save is not None:
            self.before_save()
        self._count_seconds()
        with self.clock.paused():
            self.checkpoints.save(self.state.step, *self._snapshot(), best)
        self.requests.note_saved(self.state.step)

    def _count_seconds(self) -> None:
        """Add the seconds since the last call to the state. Validation and saving do not count as training."""
        now = self.clock.now()
        self.state.train_seconds += now - self.counted
        self.counted = now

    # ------------------------------------------------------------------ what a checkpoint holds

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
        """Everything needed to continue bit by bit: what all ranks share, what this rank alone has, and documents."""
        shared = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        shard = {
            "columns": [self.columns.start, self.columns.stop],
            "mems": self.mems.to_tensor(),
            "rng": random_state(self.device),
            "window": self.window,
        }
        documents = {
            "run.json": to_dict(self.config),
            "state.json": asdict(self.state)
            | {"stream": self.stream.state_dict(), "scaler": self.scaler.state_dict()}
            | {"data": self.corpus.fingerprint, "vocabulary": self.corpus.vocab.fingerprint},
            "vocabulary.json": self.corpus.vocab.to_dict(),
        }
        return shared, shard, documents

    def restore(self, folder: Path) -> None:
        """Continue where a checkpoint was written. Its files and its configuration have been checked already."""
        manifest = read_checkpoint_file(folder, MANIFEST)
        saved = read_checkpoint_file(folder, "state.json")
        del saved["data"], saved["vocabulary"]
        self.model.load_state_dict(read_checkpoint_file(folder, "model.pt", self.device))
        self.optimizer.load_state_dict(read_checkpoint_file(folder, "optimizer.pt", self.device))
        self.stream.load_state_dict(saved.pop("stream"))
        self.scaler.load_state_dict(saved.pop("scaler"))
        self.state = TrainState.from_dict(saved)
        if not self.checkpoints.rewind(self.state.step, self.state.best_step):
            self.state.best_valid_loss, self.state.best_step = math.inf, 0  # the best checkpoint is lost
        self.mems.load_tensor(read_memory_columns(folder, self.columns))
        if manifest["world_size"] == self.world.world_size:
            shard = read_checkpoint_file(folder, f"rank_{self.world.rank}.pt", self.device)
            self.window.copy_(shard["window"])
            restore_random_state(shard["rng"], self.device)

    # ------------------------------------------------------------------ beginning and end

    def _start(self) -> None:
        self.tracker.rewind(self.state.step)
        self.requests.listen(self.state.step)
        self.model.train()
        self.counted = self.logged = self.clock.now()
        self.logged_step = self.state.step

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
        if config.valid.enabled and not config.debug:
            best = (self.checkpoints.folder / "best").resolve()
            self.model.load_state_dict(read_checkpoint_file(best, "model.pt", self.device))
        values = {
            "steps": state.step,
            "tokens": state.tokens_seen,
            "train_seconds": state.train_seconds,
            "tokens_per_second": state.tokens_seen / max(state.train_seconds, 1e-9),
            "best_valid_loss": state.best_valid_loss,
            "best_step": state.best_step,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "run_dir": str(self.run_dir),
        }
        evaluation = FinalEvaluation(config, self.corpus, self.model, self.world, self.tracker)
        values |= evaluation.evaluate(state.best_step)
        self.tracker.summary(values)
        code = evaluation.check_targets(values)
        self.tracker.close(code)
        return code
