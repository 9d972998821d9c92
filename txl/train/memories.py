"""What the model remembers of each column of the batch, from one step to the next."""

import torch
from torch import Tensor

from txl.system.timing import synchronize


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
