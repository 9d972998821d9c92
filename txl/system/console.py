"""The terminal: log lines on standard output, and a progress bar below them where somebody watches."""

import contextlib
import logging
import os
import sys
import time

REFRESH_SECONDS = 0.2


def log_to_console() -> "ConsoleHandler":
    """Show what this package logs, from INFO on. Calling it again changes nothing; returns the one handler."""
    package = logging.getLogger("txl")
    package.setLevel(logging.INFO)
    for handler in package.handlers:
        if isinstance(handler, ConsoleHandler):
            return handler
    handler = ConsoleHandler()
    package.addHandler(handler)
    return handler


def shows_progress(stream) -> bool:
    """A bar only where a person looks at it; pipes and files get plain lines."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def printable(text: str) -> str:
    """Text of a model, which may have written anything: nothing in it may drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class ConsoleHandler(logging.Handler):
    """Lines on standard output; above `bar` while there is one."""

    def __init__(self):
        super().__init__()
        self.bar: ProgressBar | None = None
        self._lost = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if self._lost:
            return
        try:
            if self.bar is not None:
                self.bar.print(text)
            else:
                encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
                sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                sys.stdout.flush()
        except (OSError, ValueError):
            self._lost = True  # `| head` ended, the window was closed: the run goes on, and its files have it all
            discard_stdout()


def discard_stdout() -> None:
    """What still waits to be written would fail again when the process ends, and make its exit code 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class ProgressBar:
    """Step, loss, tokens/s and the time left, in the last line of a terminal.

    One line of text in rich's live display: 0.3 ms per drawing, an eighth of what its table of columns takes.
    """

    def __init__(self, max_step: int, step: int):
        from rich.console import Console
        from rich.live import Live

        self._max_step, self._first, self._started, self._due = max_step, step, time.perf_counter(), 0.0
        self._console = Console()
        # No refreshing thread: it would compete with the training's. The display keeps other prints above it, too.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._console.show_cursor(True)  # else a killed run would leave the terminal without one

    def is_due(self) -> bool:
        """Is the last drawing long enough ago? Only a clock reading, for every step."""
        return time.perf_counter() >= self._due

    def show(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        from rich.text import Text

        now = time.perf_counter()
        self._due = now + REFRESH_SECONDS
        line = bar_line(
            step,
            self._max_step,
            loss,
            tokens_per_second,
            seconds_left(step - self._first, self._max_step - step, now - self._started),
            self._console.width,
        )
        with contextlib.suppress(OSError, ValueError):
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def print(self, text: str) -> None:
        self._console.out(text, highlight=False)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()


def seconds_left(done: int, left: int, elapsed: float) -> float | None:
    """By the mean pace so far, validations and saving included; None before the first step."""
    return elapsed / done * left if done > 0 else None


def bar_line(
    step: int, max_step: int, loss: float | None, speed: float | None, left: float | None, columns: int
) -> str:
    """`━━━━━───── 120/600  loss 3.123  12,345 tok/s  ETA 0:01:02`, as wide as the terminal and at most 100 columns."""
    said = [f"{step}/{max_step}"]
    if loss is not None:
        said.append(f"loss {loss:.3f}")
    if speed is not None:
        said.append(f"{speed:,.0f} tok/s")
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        said.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
    text = "  ".join(said)
    room = min(columns, 100) - len(text) - 2
    filled = max(0, room) * min(step, max_step) // max(1, max_step)
    return "━" * filled + "─" * (room - filled) + " " + text if room >= 5 else text
