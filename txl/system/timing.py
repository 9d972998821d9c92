"""Clocks: percentiles of latencies, and waiting for a GPU before a clock is read. Imports no torch."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence

PERCENTILES = (50, 90, 95, 99)


def percentiles(latencies: Sequence[float], percents: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """{"mean", "p50", "p90", "p95", "p99"} in the unit given, with numpy's linear interpolation between two values.

    Raises ValueError for an empty sequence.
    """
    if not latencies:
        raise ValueError("percentiles of no latencies: measure at least one")
    ordered = sorted(latencies)
    found = {"mean": math.fsum(ordered) / len(ordered)}
    for percent in percents:
        index, rest = divmod((len(ordered) - 1) * percent, 100)
        below = int(index)
        above = min(below + 1, len(ordered) - 1)
        found[f"p{percent:g}"] = ordered[below] + (ordered[above] - ordered[below]) * rest / 100
    return found


def synchronize() -> None:
    """Wait until the GPU of this process, if it uses one, has finished all work that was queued."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def synchronized_clock() -> float:
    """Seconds of a monotonic clock, read after the GPU has finished all queued work."""
    synchronize()
    return time.perf_counter()


class PausableClock:
    """A monotonic clock in seconds that stands still while it is paused."""

    def __init__(self) -> None:
        self._paused = 0.0

    def now(self) -> float:
        """Seconds of the clock."""
        return time.perf_counter() - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still until the block ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began
