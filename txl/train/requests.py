"""What the ranks are asked to do between two steps: save a checkpoint, or stop."""

import signal
import time
from types import FrameType
from typing import Any

from txl.system.distributed import AsyncMaximum
from txl.system.hang_watch import note_stop_signal
from txl.system.process_exit import STOP_SIGNALS, TERMINATED

SAVE, TIME_LIMIT = 1, 99  # requests besides the signals' numbers; if there are several, the largest number wins


class Requests:
    """Collects what is asked of the ranks, so that all of them do it after the same step.

    A signal reaches some ranks earlier than others, and their clocks differ. The ranks exchange their requests after
    every step and act on the largest one a step later (`AsyncMaximum`).
    """

    def __init__(self, time_limit_minutes: float | None, save_minutes: float | None, is_main: bool):
        """Ask for nothing yet.

        Args:
            time_limit_minutes: stop this long after `listen`; None: no limit.
            save_minutes: save when the last checkpoint is this old; None: never by the clock.
            is_main: whether this is rank 0, whose clock decides when to save.
        """
        self.time_limit_minutes = time_limit_minutes
        self.save_minutes = save_minutes if is_main else None
        self.signal = 0  # the first stop signal that reached this rank
        self.save = False  # whether all ranks save now
        self.stop = 0  # why all ranks stop now: a signal's number or TIME_LIMIT; 0: they go on
        self._maximum = AsyncMaximum()
        self._started = self._saved = 0.0
        self._saved_step = 0  # of the last checkpoint, or of the one that the run continues from
        self._handlers: dict[int, Any] = {}  # those that were installed before ours

    def listen(self, step: int) -> None:
        """Start the clocks and handle the stop signals. `step`: the steps done so far."""
        self._started = time.perf_counter()
        self.note_saved(step)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def note_saved(self, step: int) -> None:
        """A checkpoint of this step was written."""
        self._saved, self._saved_step = time.perf_counter(), step

    def exchange(self, step: int) -> None:
        """Set `save` and `stop` to what the ranks asked for at the last call. Collective, after every step."""
        request = self._maximum.exchange(self._own())
        # The clock of rank 0 asks again until it sees the checkpoint, which its first request brings a step later.
        self.save = request == SAVE and step - self._saved_step >= 2
        self.stop = request if request > SAVE else 0

    def finish(self) -> None:
        """Wait for the exchange under way, after the last step. Collective."""
        self._maximum.wait()

    def stop_signal_of_any_rank(self) -> int:
        """The largest stop signal that has reached a rank by now, or 0. Waits for all ranks. Collective."""
        return self._maximum.exchange_now(self.signal)

    def release(self, number: signal.Signals) -> None:
        """Give a signal back to its previous handler."""
        signal.signal(number, self._handlers[number])

    def _own(self) -> int:
        """What this rank asks for."""
        now = time.perf_counter()
        if self.signal:
            return self.signal
        if self.time_limit_minutes is not None and now - self._started > 60 * self.time_limit_minutes:
            return TIME_LIMIT
        return SAVE if self.save_minutes is not None and now - self._saved > 60 * self.save_minutes else 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt  # the second time: do not save, end now
        if self.signal == number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        note_stop_signal()
        self.signal = self.signal or number
