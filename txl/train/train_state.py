"""What a resumed run needs to continue bit by bit: how far it is, every random generator, the memories."""

import math
import random
from dataclasses import dataclass, field

import numpy as np
import torch

from txl.optim.schedule import Plateau


@dataclass
class TrainState:
    """Numbers that describe how far a run is; the same on every rank."""

    step: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    best_valid_loss: float = math.inf
    best_step: int = 0
    validated_step: int = 0
    plateau: Plateau = field(default_factory=Plateau)

    @staticmethod
    def from_dict(values: dict) -> "TrainState":
        return TrainState(**values | {"plateau": Plateau(**values["plateau"])})


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """Every generator's state, in containers that load without running code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict, device: torch.device) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
