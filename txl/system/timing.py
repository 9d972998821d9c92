"""Time: tokens per second of the work itself, and percentiles of latencies. Needs no torch but to wait for a GPU."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence

PERCENTILES = (50, 90, 95, 99)


class Throughput:
    """Tokens and seconds of training steps, without warm-up steps and without what `pause` takes out.

        meter = Throughput(warmup_steps=10)
        for ...:
            meter.step(tokens)      # once after every step
            with meter.paused():    # validating, saving
                ...

    The clock starts when the meter is made. `clock` returns seconds.
    """

    def __init__(self, warmup_steps: int = 0, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._warmup = clock, warmup_steps
        self.tokens = self.steps = 0
        self._elapsed, self._since = 0.0, clock()

    def step(self, tokens: int) -> None:
        """A step of `tokens` tokens has just ended."""
        if self._warmup > 0:
            self._warmup -= 1
            self._elapsed = 0.0
            if self._since is not None:
                self._since = self._clock()
            return
        self.steps += 1
        self.tokens += tokens

    def pause(self) -> None:
        if self._since is not None:
            self._elapsed += self._clock() - self._since
            self._since = None

    def resume(self) -> None:
        if self._since is None:
            self._since = self._clock()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @property
    def seconds(self) -> float:
        """Seconds that ran while not paused, after the warm-up."""
        return self._elapsed + (0.0 if self._since is None else self._clock() - self._since)

    @property
    def tokens_per_second(self) -> float:
        """0 before the first counted step."""
        seconds = self.seconds
        return self.tokens / seconds if self.tokens and seconds > 0 else 0.0

    @property
    def ms_per_step(self) -> float:
        """Milliseconds; 0 before the first counted step."""
        return 1000 * self.seconds / self.steps if self.steps else 0.0


def percentiles(latencies: Sequence[float], percents: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """{"mean", "p50", "p90", "p95", "p99"} in the unit given; between two values as numpy interpolates.

    Raises ValueError for an empty sequence.
    """
    if not latencies:
        raise ValueError("percentiles of no latencies: measure at least one")
    ordered = sorted(latencies)
    found = {"mean": math.fsum(ordered) / len(ordered)}
    for percent in percents:
        below, rest = divmod((len(ordered) - 1) * percent, 100)
        below = int(below)
        above = min(below + 1, len(ordered) - 1)
        found[f"p{percent:g}"] = ordered[below] + (ordered[above] - ordered[below]) * rest / 100
    return found


def synchronize() -> None:
    """Wait until the GPU, if this process uses one, has done what it was given: only then does a clock tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
