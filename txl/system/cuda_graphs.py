"""Functions of tensors as CUDA graphs: all launches of a call are one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CapturedCall:
    """A call as a CUDA graph. It reads the same addresses each time, so arguments are copied to where it reads them.

    Shapes are fixed, and nothing may wait for the device. What the function does on the host happens while capturing
    only.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor], pool: Any):
        """Run the function once, then capture it.

        Args:
            function: what is captured.
            inputs: its arguments, of the shapes of all later ones.
            pool: memory that graphs share of which one runs at a time (torch.cuda.graph_pool_handle).
        """
        self.graph, self.inputs = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
        # What is loaded or set up at a first use must not be captured. So the function runs once before, on a stream of
        # its own, as torch asks for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # A cast that autocast keeps would lie in the graph's memory, and be used outside of it.
        keeps_casts = torch.is_autocast_cache_enabled()
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.cuda.graph(self.graph, pool=pool):
                self.output = function(*self.inputs)
        finally:
            torch.set_autocast_cache_enabled(keeps_casts)

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returned, with these arguments. The next call overwrites it."""
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        self.graph.replay()
        return self.output
