"""What a resumed run needs, besides weights, to continue bit by bit: its progress and the random generators."""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from txl.optim.schedule import Plateau


@dataclass
class TrainState:
    """How far a run is. The same on every rank."""

    step: int = 0  # optimizer steps done
    tokens_seen: int = 0  # of all ranks
    train_seconds: float = 0.0  # without validation and saving
    skipped_steps: int = 0  # by the loss scaler of fp16
    best_valid_loss: float = math.inf  # nats per token
    best_step: int = 0  # 0: no validation was the best yet
    validated_step: int = 0  # of the last validation
    logged_step: int = 0  # of the last train record in metrics.jsonl
    plateau: Plateau = field(default_factory=Plateau)  # of the dev_perf schedule

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TrainState":
        """The inverse of `dataclasses.asdict`."""
        return TrainState(**values | {"plateau": Plateau(**values["plateau"])})


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
