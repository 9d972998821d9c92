"""Notice that a training has diverged: a loss, a gradient or a weight is not finite any more."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REMEMBERED = 10_000  # batches whose places are known
MIN_LOSS_SCALE = 1e-4  # fp16: a healthy run stays far above; below it every step is skipped


class DivergedError(Exception):
    """The training has diverged. The message is for the user, in one line."""


@dataclass(frozen=True)
class BatchPlace:
    """Which batch a step was computed from, and how."""

    step: int  # the number of the step, from 1
    epoch: int
    batch: int  # of the epoch, from 0
    lr: float

    def __str__(self) -> str:
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"


class DivergenceWatch:
    """Observes every step on the device. The host reads the observations when it waits for the device anyway."""

    def __init__(self, device: torch.device):
        self._first_step = torch.full((), math.inf, dtype=torch.float64, device=device)  # that was not finite
        self._last_loss = torch.full((), math.nan, dtype=torch.float64, device=device)  # nats per token, finite
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._places: deque[BatchPlace] = deque(maxlen=REMEMBERED)

    def note_place(self, place: BatchPlace) -> None:
        """Remember which batch the next step reads."""
        self._places.append(place)

    def skip(self) -> None:
        """Count a step that was skipped because its gradient is not finite."""
        self._skipped += 1

    def observe(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Observe a step without a loss scaler. Does not wait for the device.

        Args:
            step: the number of this step, from 1.
            loss: nats per token of this rank, [].
            grad_norm: norm of the gradient, [].
        """
        finite = loss.isfinite() & grad_norm.isfinite()
        self._first_step = torch.where(finite, self._first_step, self._first_step.clamp(max=step))
        self._last_loss = torch.where(finite & self._first_step.isinf(), loss, self._last_loss)

    def observe_scaled(self, loss: Tensor, found_inf: Sequence[Tensor]) -> None:
        """Observe a step that the loss scaler skips if its gradient is not finite. Does not wait for the device.

        Args:
            loss: nats per token of this rank, [].
            found_inf: what the scaler found, for every device: not 0 if it skips the step.
        """
        skipped = torch.stack([found.flatten()[0] for found in found_inf]).any()
        self._skipped += skipped
        self._last_loss = torch.where(skipped | ~loss.isfinite(), self._last_loss, loss)

    def take_skipped_steps(self) -> int:
        """Steps skipped since the last call. Waits for the device."""
        skipped = int(self._skipped.item())
        self._skipped.zero_()
        return skipped

    def first_place(self) -> BatchPlace:
        """The batch of the first step that was not finite; the latest batch if none was. Waits for the device."""
        first = self._first_step.item()
        latest = self._places[-1] if self._places else BatchPlace(0, 0, 0, 0.0)
        return next((place for place in self._places if place.step == first), latest)

    def describe(self) -> str:
        """The first step that was not finite, its batch, and the last finite loss. Waits for the device."""
        loss = self._last_loss.item()
        last = "no loss was finite" if math.isnan(loss) else f"the last finite loss was {loss:.4g}"
        return f"{self.first_place()}; {last}"


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every element of all tensors is finite, [] bool on their device. Reads each of them once."""
    return torch.stack(torch._foreach_norm([t for t in tensors if t.numel()], ord=math.inf)).isfinite().all()
