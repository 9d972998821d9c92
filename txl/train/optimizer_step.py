"""One optimizer step on one rank, with everything that it changes: weights, optimizer, scaler, memories.

Shapes: B columns of this rank's batch, T segment length.
"""

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from txl.config.geometry import train_geometry
from txl.config.schema import RunConfig
from txl.data.batches import Batch
from txl.model.sampled_softmax import prepare_sampled_softmax
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients
from txl.system.devices import copy_to_device
from txl.system.distributed import average_sparse_gradient, sum_over_ranks
from txl.system.hang_watch import note_progress
from txl.system.precision import autocast, loss_scaler
from txl.system.world import World
from txl.train.divergence import MIN_LOSS_SCALE, DivergedError, DivergenceWatch, are_finite
from txl.train.memories import BatchMemories
from txl.train.model_with_loss import ModelWithLoss, average_gradients_over_ranks, build_model


class OptimizerStep:
    """Computes optimizer steps: every micro-batch forward and backward, then clip and update."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        columns: int,
        micro_batch_size: int,
        world: World,
        device: torch.device,
    ):
        """Build model and optimizer.

        Args:
            config: the run.
            vocab_size: how many tokens the model knows.
            columns: of this rank's batch.
            micro_batch_size: columns of one forward pass.
            world: which rank this is.
            device: where it trains.
        """
        self.config, self.world, self.device = config, world, device
        self.columns, self.micro_batch_size = columns, micro_batch_size
        self.precision = config.precision.name
        # The number may differ between ranks, and the last micro-batch of the first rank may be smaller.
        self.n_micro_batches = -(-columns // micro_batch_size)
        self.model = build_model(config, vocab_size, device, self.n_micro_batches == 1)
        self.sampler, self.sparse_tables = prepare_sampled_softmax(
            self.model, config.train.sampled_softmax, config.seed
        )
        self.optimizer: Any = build_optimizer(config.optimizer, self.model.named_parameters(), self.sparse_tables)
        self.scaler = loss_scaler(config.precision, device)
        with_loss = ModelWithLoss(self.model, loss_is_scaled=self.scaler.is_enabled())
        self.model_with_loss: nn.Module = with_loss
        if world.world_size > 1:
            self.model_with_loss = average_gradients_over_ranks(with_loss, device, self.sparse_tables, world)
        self.mems = BatchMemories(self.n_micro_batches, micro_batch_size, device, config.train.swap_mem)
        self.window = torch.zeros(2, dtype=torch.float64, device=device)  # nats and tokens since `take_window`
        self.grad_norm = torch.zeros((), device=device)  # of the last step, before clipping
        self.clipped: list[Tensor] = [p for name, p in self.model.named_parameters() if self._is_clipped(name)]
        self.divergence = DivergenceWatch(device)
        self.skipped_in_a_row = 0  # steps, with train.non_finite_steps above 1
        self.on_part_done: Callable[[str], None] = lambda part: None  # is called after every part of a step

    def _is_clipped(self, name: str) -> bool:
        return not (self.config.train.clip_nonemb and name.startswith(("embedding.", "softmax.weights.")))

    # ------------------------------------------------------------------ the step

    def run(self, batch: Batch, step: int, lr: float) -> int:
        """Do one step.

        The host does not wait for a GPU here: while the GPU computes, the host prepares the next batch.

        Args:
            batch: this rank's columns.
            step: how many steps were done before.
            lr: the learning rate.

        Returns:
            The number of tokens of all ranks.
        """
        input = copy_to_device(batch.input, self.device).split(self.micro_batch_size)
        target = copy_to_device(batch.target, self.device).split(self.micro_batch_size)
        host_target = batch.target.split(self.micro_batch_size)
        tokens = self.config.train.batch_size * batch.target.shape[1]
        geometry = train_geometry(self.config, step)
        sample = self.sampler.draw(step).to(self.device) if self.sampler else None
        multi_token_weight = self.config.train.multi_token_weight_at(step)
        scale = self.world.world_size / tokens  # DistributedDataParallel averages over ranks; the mean is over tokens
        nats_of_step: list[Tensor] = []
        for i in range(self.n_micro_batches):
            groups = self.model.softmax.clusters.sort_tokens(host_target[i].flatten()).to(self.device)
            self.on_part_done("input")
            with self._gradients_stay_local(unless=i == self.n_micro_batches - 1):
                with autocast(self.precision, self.device):
                    loss, nats, mems = self.model_with_loss(
                        input[i], target[i], self.mems.get(i), geometry, scale, groups, sample, multi_token_weight
                    )
                self.on_part_done("forward")
                note_progress()
                self.scaler.scale(loss).backward()
                self.mems.set(i, mems)  # after the backward pass, which has read the old ones
            self._add_to_window(nats, target[i].numel())
            nats_of_step.append(nats)
            self.on_part_done("backward")
        self._update(lr, step, torch.stack(nats_of_step).sum() / (self.columns * batch.target.shape[1]))
        self.on_part_done("optimizer")
        return tokens

    def _gradients_stay_local(self, unless: bool) -> AbstractContextManager[None]:
        """Under it, a backward pass adds to the gradients of this rank only; the last one of a step averages them."""
        if isinstance(self.model_with_loss, DistributedDataParallel) and not unless:
            return self.model_with_loss.no_sync()
        return contextlib.nullcontext()

    @property
    def skips_steps(self) -> bool:
        """Whether a step whose gradient is not finite is skipped and counted."""
        return self.scaler.is_enabled() or self.config.train.non_finite_steps > 1

    def _add_to_window(self, nats: Tensor, tokens: int) -> None:
        counted = torch.stack([nats, torch.full_like(nats, tokens)])
        if self.skips_steps:  # a step that is not finite is skipped: it must not spoil the mean of the others
            counted = torch.where(nats.isfinite(), counted, 0.0)
        self.window += counted

    def _update(self, lr: float, step: int, loss: Tensor) -> None:
        """Clip the gradients, update the weights, and forget the gradients. `loss`: of this rank, nats per token."""
        for table in self.sparse_tables:
            assert table.grad is not None
            table.grad = average_sparse_gradient(table.grad)
        if self.config.train.non_finite_steps > 1 and self._skip_if_not_finite(step):
            return
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = clip_gradients(self.optimizer, self.clipped, self.config.train.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.scaler.is_enabled():
            found_inf = self.scaler._found_inf_per_device(self.optimizer)  # update() forgets it
            self.divergence.observe_scaled(loss, list(found_inf.values()))
        else:
            self.divergence.observe(step + 1, loss, self.grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _skip_if_not_finite(self, step: int) -> bool:
        """Whether the step is skipped because its gradient, which is the same on all ranks, is not finite.

        Waits for the device. Raises DivergedError if so many steps in a row were not finite that the run must end.
        """
        if are_finite([p.grad for p in self.model.parameters() if p.grad is not None]).item():
            self.skipped_in_a_row = 0
            return False
        self.divergence.skip()
        self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.mems.replace_non_finite()
        if self.skipped_in_a_row >= self.config.train.non_finite_steps:
            raise self.diverged(f"the gradients of {self.skipped_in_a_row} steps in a row are not finite")
        return True

    # ------------------------------------------------------------------ between steps; these wait for the device

    def take_window(self) -> tuple[float, float]:
        """Nats and tokens of all ranks since the last call. Collective."""
        nats, tokens = sum_over_ranks(self.window.clone()).tolist()
        self.window.zero_()
        return nats, tokens

    def loss_scale(self) -> float | None:
        """The factor of the loss scaler, or None without one."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def check_logged(self, nats: float, grad_norm: float) -> None:
        """Raises DivergedError if what was logged is not finite, or if every step is skipped."""
        loss_scale = self.loss_scale()
        if loss_scale is not None:
            if loss_scale < MIN_LOSS_SCALE:
                raise self.diverged(f"the loss scale of fp16 fell to {loss_scale:.0e}")
        elif not (math.isfinite(nats) and math.isfinite(grad_norm)):
            raise self.diverged("its loss or gradient is not finite")

    def check_finite(self) -> None:
        """Raises DivergedError if loss, gradient or weights are not finite. Collective."""
        finite = are_finite(list(self.model.parameters()))
        if not self.scaler.is_enabled():
            finite = finite & self.window.isfinite().all() & self.grad_norm.isfinite()
        if sum_over_ranks((~finite).float()).item():
            raise self.diverged("its loss, gradient or weights are not finite")

    def forget_divergence(self) -> None:
        """Go on after a rollback as if nothing had been observed."""
        self.divergence, self.skipped_in_a_row = DivergenceWatch(self.device), 0
        self.grad_norm = torch.zeros_like(self.grad_norm)

    def diverged(self, reason: str) -> DivergedError:
        """The error that ends this run, with what may help."""
        train = self.config.train
        clip = "" if 0 < train.clip <= 0.25 else ", train.clip=0.25"
        return DivergedError(
            f"the training diverged: {reason} (since {self.divergence.describe()}; learning rate "
            f"{self.optimizer.param_groups[0]['lr']:.3g}); earlier checkpoints are kept; try a lower optimizer.lr, "
            f"a longer scheduler.warmup_step{clip}"
        )
