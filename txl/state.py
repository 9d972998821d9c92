"""What a resumed run needs to continue bit by bit: how far it is, every random generator, the memories."""

import math
import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from txl.optim import Plateau
from txl.timing import synchronize


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


class Memories:
    """What the model remembers of the columns of each of `parts` micro-batches, from one step to the next.

    `swap`: between two uses they lie in the host's pinned memory; on a CPU that is where they are anyway. All copies
    are made in the stream that computes, so none overtakes another and nobody waits; only `merge` does.
    """

    def __init__(self, parts: int, micro_batch_size: int, device: torch.device, swap: bool = False):
        self.micro_batch_size, self.device, self.swap = micro_batch_size, device, swap and device.type == "cuda"
        self._parts: list[list[Tensor]] = [[] for _ in range(parts)]

    def take(self, part: int) -> list[Tensor]:
        """Per layer [B, M, D] on the device; an empty list at the beginning."""
        return [mem.to(self.device, non_blocking=True) for mem in self._parts[part]]

    def put(self, part: int, mems: list[Tensor]) -> None:
        if not self.swap:
            self._parts[part] = mems
            return
        host = self._parts[part]
        if [mem.shape for mem in host] != [mem.shape for mem in mems]:
            pinned = self.device.type == "cuda"
            host = [torch.empty(mem.shape, dtype=mem.dtype, pin_memory=pinned) for mem in mems]
        for mine, mem in zip(host, mems, strict=True):
            mine.copy_(mem, non_blocking=True)
        self._parts[part] = host

    def merge(self) -> Tensor | None:
        """All as one tensor [L, columns, M, D]; None while nothing is remembered."""
        if not self._parts[0]:
            return None
        if self.swap:
            synchronize()
        return torch.stack([torch.cat(layer) for layer in zip(*self._parts, strict=True)])

    def deal(self, mems: Tensor | None) -> None:
        """The inverse of `merge`, from wherever the tensor is."""
        if mems is not None:
            for part, columns in enumerate(mems.split(self.micro_batch_size, dim=1)):
                self.put(part, [layer if self.swap else layer.to(self.device) for layer in columns.unbind()])
