"""Notice that the training loss has suddenly risen, which often comes before a divergence."""

import math
import statistics
from dataclasses import dataclass, field

COMPARED = 20  # losses before, that a loss is compared with
NEEDED = 10  # of them
SMALLEST = 0.5  # nats per token above their median: less is no spike
TYPICAL_RISES = 8.0  # a spike lies so many times further from the median than a loss typically does


@dataclass
class LossSpikes:
    """The latest logged losses, and whether the last one was a spike. Part of the state of a training."""

    recent: list[float] = field(default_factory=list)  # nats per token
    is_spike: bool = False

    def add(self, loss: float) -> str | None:
        """Compare a logged loss with those before.

        Returns a line about a spike that begins here. Sets `is_spike`, also while it lasts.
        """
        before, was_spike = self.recent, self.is_spike
        self.recent, self.is_spike = [*before, loss][-COMPARED:], False
        if not math.isfinite(loss):
            self.recent = before
            return None
        if len(before) < NEEDED:
            return None
        median = statistics.median(before)
        typical = statistics.median(abs(value - median) for value in before)
        self.is_spike = loss > median + max(SMALLEST, TYPICAL_RISES * typical)
        if not self.is_spike or was_spike:
            return None
        return f"loss spike: {loss:.3f}, while the last {len(before)} records have the median {median:.3f}"
