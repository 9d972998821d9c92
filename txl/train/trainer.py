"""The training loop, and the one visible dict of everything that it must remember."""

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from txl.checkpoint.checkpoint_files import MANIFEST, read_checkpoint_file, read_memory_columns
from txl.checkpoint.store import Checkpoints
from txl.config.compose import to_dict
from txl.config.geometry import Geometry, train_geometry, valid_geometry
from txl.config.schema import RunConfig
from txl.config.training import longest_context
from txl.data.corpus import Corpus
from txl.data.sentence_batches import training_stream
from txl.evaluate.loss import evaluate_split
from txl.model.attention import choose_backend
from txl.model.sampled_softmax import prepare_sampled_softmax, sampled_loss
from txl.model.transformer import TransformerXL
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients
from txl.optim.schedule import lr_at, lr_of_update
from txl.plan.run_plan import Plan
from txl.system.devices import copy_to_device, should_compile
from txl.system.distributed import AsyncMaximum, average_sparse_gradient, sum_over_ranks
from txl.system.hang_watch import note_progress, note_stop_signal
from txl.system.precision import autocast, loss_scaler, parameter_dtype, set_matmul_precision
from txl.system.process_exit import TERMINATED
from txl.system.world import World, columns_of
from txl.tracking.tracker import Tracker
from txl.train.final_evaluation import FinalEvaluation
from txl.train.memories import Memories
from txl.train.train_state import TrainState, random_state, restore_random_state, seed_everything

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # USR2: SLURM is about to end or preempt the job


SAVE_DUE, TIME_LIMIT = 1, 99  # wishes that are no signals; of several, the largest is granted


class Objective(nn.Module):
    """Hidden states and their loss in one forward pass, which is what DistributedDataParallel must wrap."""

    def __init__(self, model: TransformerXL):
        super().__init__()
        self.model = model

    def forward(
        self, input: Tensor, target: Tensor, mems: list[Tensor], geometry: Geometry, scale: float, groups, sample=None
    ):
        """-> scale * nats to start the backward pass from, nats without gradient, new mems."""
        hidden, mems = self.model(input, mems, geometry)
        if sample is not None:
            return *sampled_loss(self.model, hidden, target, scale, sample), mems
        return *self.model.total_loss(hidden, target, scale, groups), mems


class Trainer:
    """One run on one rank. `train()` returns the process' exit code."""

    def __init__(
        self, config: RunConfig, plan: Plan, corpus: Corpus, world: World, device: torch.device, tracker: Tracker
    ):
        self.config, self.plan, self.corpus, self.world, self.device = config, plan, corpus, world, device
        self.tracker = tracker
        self.run_dir = Path(plan.run_dir)
        self.geometry, self.precision = train_geometry(config), config.precision.name
        set_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(config.deterministic)
        seed_everything(config.seed)
        self.model = self._build_model()
        self.sampler, self.sparse_tables = prepare_sampled_softmax(
            self.model, config.train.sampled_softmax, config.seed
        )
        self.optimizer = build_optimizer(config.optimizer, self.model.named_parameters(), self.sparse_tables)
        self.scaler = loss_scaler(config.precision, device)
        self.objective = self._wrap(Objective(self.model))
        seed_everything(config.seed + 1_000_003 * world.rank)  # ranks hold other columns: other dropout as well
        first = config.train.first_rank_batch_size
        self.columns = columns_of(world.rank, world.world_size, config.train.batch_size, first)
        self.stream = training_stream(corpus, config.train, config.seed, self.columns)
        # Ranks may differ in their number, and the first rank's last one may be smaller.
        self.n_micro_batches = -(-len(self.columns) // plan.micro_batch_size)
        self.mems = Memories(self.n_micro_batches, plan.micro_batch_size, device, config.train.swap_mem)
        self.state = TrainState()
        self.window = torch.zeros(2, dtype=torch.float64, device=device)  # nats and tokens since the last log line
        self.clipped = [p for n, p in self.model.named_parameters() if not self._is_embedding(n)]
        self.checkpoints = Checkpoints(
            self.run_dir / "checkpoints", world, config.checkpoint.keep, config.checkpoint.save_all
        )
        self.agreement, self.stop_signal = AsyncMaximum(), 0
        self.fence: Callable[[], None] | None = None  # called on rank 0 before it saves: is the run still ours?
        self.mark: Callable[[str], None] = lambda part: None  # called when a part of a step is over (train_speed.py)

    # ------------------------------------------------------------------ building

    def _build_model(self) -> TransformerXL:
        model, train = self.config.model, self.config.train
        longest = longest_context(vars(train))
        vocab_size, cutoffs = len(self.corpus.vocab), self.config.data.cutoffs
        backend = choose_backend(self.config.attention, self.device, self.precision)
        built = TransformerXL(model, vocab_size, cutoffs, longest, backend, self.config.recompute)
        if should_compile(self.config.compile, self.device):
            built.compile_layers()
        return built.to(self.device, parameter_dtype(self.precision))

    def _wrap(self, objective: Objective) -> nn.Module:
        if self.world.world_size == 1:
            return objective
        devices = [self.device] if self.device.type == "cuda" else None
        ours = [name for name, p in objective.named_parameters() if any(p is table for table in self.sparse_tables)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            objective, ours
        )  # average_sparse_gradient has them
        # find_unused_parameters keeps the buckets as they are built, so that a resumed run adds up in the same order
        # (and a tail cluster without a token has no gradient). That it finds none at times is no news.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        return DistributedDataParallel(objective, devices, find_unused_parameters=True)

    def _is_embedding(self, name: str) -> bool:
        return self.config.train.clip_nonemb and name.startswith(("embedding.", "softmax.weights."))

    # ------------------------------------------------------------------ the loop

    def train(self) -> int:
        """Until max_step, a signal or the time limit; then validate, test and write the summary."""
        self._open()
        try:
            return self._loop()
        except BaseException:
            self.tracker.close(1)
            raise

    def _loop(self) -> int:
        config, state = self.config, self.state
        self.model.train()
        self.began = self.started = self.logged = self.saved = time.perf_counter()
        self.logged_step = self.saved_step = state.step
        stop = granted = 0
        while state.step < config.train.max_step and not stop:
            self.step()
            if state.step % config.train.log_interval == 0:
                self.report()
            if config.valid.enabled and self._due(config.valid.interval):
                self.validate()
            elif state.step < config.train.max_step and (self._due(config.checkpoint.interval) or granted == SAVE_DUE):
                self.save()
            granted = self.agreement.exchange(self._wish())
            if granted == SAVE_DUE and state.step - self.saved_step < 2:
                granted = 0  # an echo: the wish was repeated before it was granted
            stop = granted if granted > SAVE_DUE else 0
        self.agreement.wait()
        state.train_seconds += time.perf_counter() - self.started
        if state.step < config.train.max_step:
            return self._interrupted(stop)
        return self._finish()

    def step(self) -> None:
        """One optimizer step: every micro-batch forward and backward, clip, update.

        Nothing here waits for a GPU: while it computes, the host has the next batch ready.
        """
        config, state, plan = self.config, self.state, self.plan
        batch = self.stream.next()
        input = copy_to_device(batch.input, self.device).split(plan.micro_batch_size)
        target = copy_to_device(batch.target, self.device).split(plan.micro_batch_size)
        on_host = batch.target.split(plan.micro_batch_size)
        tokens = config.train.batch_size * batch.target.shape[1]  # of all ranks
        sample = self.sampler.draw(state.step).to(self.device) if self.sampler else None
        scale = self.world.world_size / tokens  # DistributedDataParallel averages over ranks; the mean is over tokens
        for i in range(self.n_micro_batches):
            groups = self.model.softmax.clusters.sort_tokens(on_host[i].flatten()).to(self.device)
            last = i == self.n_micro_batches - 1
            self.mark("input")
            with self._gradients_stay_local(unless=last):
                with autocast(self.precision, self.device):
                    loss, nats, mems = self.objective(
                        input[i], target[i], self.mems.take(i), self.geometry, scale, groups, sample
                    )
                self.mark("forward")
                note_progress()
                self.scaler.scale(loss).backward()
                self.mems.put(i, mems)  # in the place of those that the backward pass has just read
            self.window += torch.stack([nats, torch.full_like(nats, target[i].numel())])
            self.mark("backward")
        for table in self.sparse_tables:
            table.grad = average_sparse_gradient(table.grad)
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = clip_gradients(self.optimizer, self.clipped, config.train.clip)
        self.lr = self._learning_rate(lr_of_update)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.mark("optimizer")
        note_progress(is_step=True)
        state.step += 1
        state.tokens_seen += tokens
        self.tracker.progress(state.step)

    def _gradients_stay_local(self, unless: bool):
        wrapped = isinstance(self.objective, DistributedDataParallel)
        return self.objective.no_sync() if wrapped and not unless else contextlib.nullcontext()

    def _learning_rate(self, rule) -> float:
        config, state = self.config, self.state
        max_step = config.scheduler.max_step or config.train.max_step
        return rule(state.step, config.scheduler, config.optimizer.lr, max_step, state.plateau)

    # ------------------------------------------------------------------ what is due

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.state.step % interval == 0

    def _wish(self) -> int:
        """What this rank would have all ranks do after the next step; rank 0's clock says when minutes have passed."""
        limit, minutes, now = self.config.train.time_limit_minutes, self.config.checkpoint.minutes, time.perf_counter()
        if self.stop_signal:
            return self.stop_signal
        if limit is not None and now - self.began > 60 * limit:
            return TIME_LIMIT
        return SAVE_DUE if self.world.is_main and minutes is not None and now - self.saved > 60 * minutes else 0

    # ------------------------------------------------------------------ reporting, validating, saving

    def report(self) -> None:
        """The log line: the only place where the host waits for the device."""
        nats, tokens = sum_over_ranks(self.window.clone()).tolist()
        now, state = time.perf_counter(), self.state
        steps, elapsed = state.step - self.logged_step, now - self.logged
        self.window.zero_()
        self.logged, self.logged_step = now, state.step
        self.tracker.train_step(
            epoch=self.stream.last_epoch,
            step=state.step,
            batch=self.stream.last_index + 1,
            n_batches=self.stream.n_batches,
            lr=self._learning_rate(lr_at),
            ms_per_batch=1000 * elapsed / max(1, steps),
            tokens_per_second=tokens / elapsed,
            loss=nats / max(1.0, tokens),
            grad_norm=self.grad_norm.item(),
            tokens_seen=state.tokens_seen,
            loss_scale=self.scaler.get_scale() if self.scaler.is_enabled() else None,
        )

    def validate(self) -> None:
        """Loss on the validation split; a checkpoint; the plateau schedule's decision."""
        config, state, began = self.config, self.state, time.perf_counter()
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
        self._pause(time.perf_counter() - began)
        self.save(best=is_best)

    def save(self, best: bool = False) -> None:
        if self.config.debug:
            return
        if self.fence is not None:
            self.fence()
        began = time.perf_counter()
        # Time spent so far belongs to the state; the clock goes on from here.
        self.state.train_seconds += began - self.started
        self.started = began
        shared, shard, documents = self._snapshot()
        self.checkpoints.save(self.state.step, shared, shard, documents, best)
        self.saved, self.saved_step = time.perf_counter(), self.state.step
        self._pause(self.saved - began)

    def _pause(self, seconds: float) -> None:
        """Validating and saving are not training: they count in no throughput."""
        self.started += seconds
        self.logged += seconds

    # ------------------------------------------------------------------ everything that is remembered

    def _snapshot(self) -> tuple[dict, dict, dict]:
        """What a resumed run needs to continue bit by bit: shared by all ranks, this rank's own, and documents."""
        shared = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        shard = {
            "columns": [self.columns.start, self.columns.stop],
            "mems": self.mems.merge(),
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
        """Continue exactly where this checkpoint was written (run_folder.py has verified it and its configuration)."""
        manifest = read_checkpoint_file(folder, MANIFEST)
        saved = read_checkpoint_file(folder, "state.json")
        del saved["data"], saved["vocabulary"]
        self.model.load_state_dict(read_checkpoint_file(folder, "model.pt", self.device))
        self.optimizer.load_state_dict(read_checkpoint_file(folder, "optimizer.pt", self.device))
        self.stream.load_state_dict(saved.pop("stream"))
        self.scaler.load_state_dict(saved.pop("scaler"))
        self.state = TrainState.from_dict(saved)
        if not self.checkpoints.rewind(self.state.step, self.state.best_step):
            self.state.best_valid_loss, self.state.best_step = math.inf, 0  # the next one is the best there is
        self.mems.deal(read_memory_columns(folder, self.columns))
        if manifest["world_size"] == self.world.world_size:
            shard = read_checkpoint_file(folder, f"rank_{self.world.rank}.pt", self.device)
            self.window.copy_(shard["window"])
            restore_random_state(shard["rng"], self.device)

    # ------------------------------------------------------------------ beginning and end

    def _open(self) -> None:
        self.tracker.rewind(self.state.step)
        self.handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def _on_signal(self, number: int, frame) -> None:
        if self.stop_signal == number == signal.SIGINT:
            raise KeyboardInterrupt  # the second time: do not save, end now
        if self.stop_signal == number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        note_stop_signal()
        self.stop_signal = number

    def _interrupted(self, stop: int) -> int:
        self.save()
        state = self.state
        reason = "time limit" if stop == TIME_LIMIT else signal.Signals(stop).name
        kept = "nothing was saved: debug=true" if self.config.debug else "saved. Continue with resume=auto"
        self.tracker.message(f"Stopped at step {state.step} ({reason}); {kept}")
        code = 0 if stop == TIME_LIMIT else 128 + stop
        self.tracker.close(code)
        return code

    def _finish(self) -> int:
        """Validate unless that was just done, test the best weights, write the summary; the exit code."""
        config, state = self.config, self.state
        if not config.valid.enabled:
            self.save()
        elif state.validated_step != state.step:
            self.validate()
        # All is saved: from here on submitit may requeue the job at once, and it will come back to this point.
        signal.signal(signal.SIGUSR2, self.handlers[signal.SIGUSR2])
        if stop := self.agreement.exchange_now(self.stop_signal):
            return self._interrupted(stop)  # it came with the last step, or during the validation
        if config.valid.enabled and not config.debug:
            best = self.checkpoints.folder / "best"
            self.model.load_state_dict(read_checkpoint_file(best.resolve(), "model.pt", self.device))
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
        ending = FinalEvaluation(config, self.corpus, self.model, self.world, self.tracker)
        values |= ending.evaluate(state.best_step)
        self.tracker.summary(values)
        code = ending.check_targets(values)
        self.tracker.close(code)
        return code
