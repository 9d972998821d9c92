"""What a resumed run needs, besides weights, to continue bit by bit: its progress and the random generators."""

import math
import random
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import torch

from txl.errors import quoted
from txl.optim.schedule import Plateau
from txl.train.loss_spikes import LossSpikes


@dataclass
class TrainState:
    """How far a run is. The same on every rank."""

    step: int = 0  # optimizer steps done
    tokens_seen: int = 0  # of all ranks
    train_seconds: float = 0.0  # without validation and saving
    skipped_steps: int = 0  # because their gradient was not finite
    best_valid_loss: float = math.inf  # nats per token
    best_step: int = 0  # 0: no validation was the best yet
    validated_step: int = 0  # of the last validation
    logged_step: int = 0  # of the last train record in metrics.jsonl
    plateau: Plateau = field(default_factory=Plateau)  # of the dev_perf schedule
    lr_factor: float = 1.0  # rollbacks lower it
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # from which step to which, and where in the text
    spikes: LossSpikes = field(default_factory=LossSpikes)

    def results(self) -> dict[str, Any]:
        """What summary.json says of the training itself."""
        return {
            "steps": self.step,
            "tokens": self.tokens_seen,
            "train_seconds": self.train_seconds,
            "tokens_per_second": self.tokens_seen / max(self.train_seconds, 1e-9),
            "best_valid_loss": self.best_valid_loss,
            "best_step": self.best_step,
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TrainState":
        """The inverse of `dataclasses.asdict`. Raises ValueError if a value has another type."""
        spikes = LossSpikes(**values.get("spikes", {}))  # older checkpoints have none
        state = TrainState(**values | {"plateau": Plateau(**values["plateau"]), "spikes": spikes})
        for part in (state, state.plateau, state.spikes):
            for name, kind in get_type_hints(type(part)).items():
                if not _has_type(getattr(part, name), kind):
                    raise ValueError(f"{name} is {quoted(repr(getattr(part, name)), 40)}")
        return state


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON document is what an annotation says; a whole number is a float, too."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(element, get_args(kind)[0]) for element in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (get_origin(kind) or kind)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator, in containers that can be loaded without running code."""
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = legacy
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
