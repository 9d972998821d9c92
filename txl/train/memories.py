"""The memories of a batch between two training steps.

Shapes: L layers, B columns of this rank's batch, M memory, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from txl.system.timing import synchronize


class BatchMemories:
    """The memories of every micro-batch, kept from one step to the next."""

    def __init__(self, parts: int, micro_batch_size: int, device: torch.device, swap: bool = False):
        """Start without any memory.

        Args:
            parts: how many micro-batches there are.
            micro_batch_size: columns of each; the last one may have fewer.
            device: where the model is.
            swap: between two uses keep the memories in the host's pinned RAM. On a CPU this changes nothing. All
                copies are made in the stream that computes, so the host waits for none of them but those of
                `to_tensor`.
        """
        self.micro_batch_size, self.device, self.swap = micro_batch_size, device, swap and device.type == "cuda"
        self._parts: list[list[Tensor]] = [[] for _ in range(parts)]

    def get(self, part: int) -> list[Tensor]:
        """The memories of a micro-batch on the device: per layer [columns, M, D], or an empty list at the start."""
        return [mem.to(self.device, non_blocking=True) for mem in self._parts[part]]

    def set(self, part: int, mems: list[Tensor]) -> None:
        """Keep the new memories of a micro-batch."""
        if not self.swap:
            self._parts[part] = mems
            return
        host = self._parts[part]
        if [mem.shape for mem in host] != [mem.shape for mem in mems]:
            pinned = self.device.type == "cuda"
            host = [torch.empty(mem.shape, dtype=mem.dtype, pin_memory=pinned) for mem in mems]
        for buffer, mem in zip(host, mems, strict=True):
            buffer.copy_(mem, non_blocking=True)
        self._parts[part] = host

    def replace_non_finite(self) -> None:
        """Put zeros where a step whose numbers overflowed left values that are not finite."""
        for part, mems in enumerate(self._parts):
            if mems:
                self.set(part, [torch.nan_to_num(mem, nan=0.0, posinf=0.0, neginf=0.0) for mem in mems])

    def to_tensor(self) -> Tensor | None:
        """All memories as one tensor [L, B, M, D], or None at the start."""
        if not self._parts[0]:
            return None
        if self.swap:
            synchronize()
        return torch.stack([torch.cat(layer) for layer in zip(*self._parts, strict=True)])

    def load_tensor(self, mems: Tensor | None) -> None:
        """The inverse of `to_tensor`; the tensor may be on any device."""
        self._parts = [[] for _ in self._parts]
        if mems is not None:
            columns: Sequence[Tensor] = mems.split(self.micro_batch_size, dim=1)
            for part, of_part in enumerate(columns):
                self.set(part, [layer if self.swap else layer.to(self.device) for layer in of_part.unbind()])
