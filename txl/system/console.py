"""Log lines on standard output, and a progress bar below them if standard output is a terminal."""

import contextlib
import io
import logging
import os
import shutil
import sys
import time
import unicodedata
from typing import TextIO

REFRESH_SECONDS = 0.2

# Besides line feed and tab: soft hyphen, zero-width space and joiners, marks of direction, word joiner, and the tags
# that flags consist of. Overrides of the direction are not among them: they show a line in another order than it has.
JOINERS = {"\n", "\t", "\u00ad", *map(chr, range(0x200B, 0x2010)), "\u2060", *map(chr, range(0xE0020, 0xE0080))}


def log_to_console() -> "ConsoleHandler":
    """Print the log records of this package from INFO on. A second call adds nothing; returns the handler."""
    package = logging.getLogger("txl")
    package.setLevel(logging.INFO)
    for handler in package.handlers:
        if isinstance(handler, ConsoleHandler):
            return handler
    handler = ConsoleHandler()
    package.addHandler(handler)
    return handler


def escape_what_cannot_be_printed() -> None:
    """Let standard output and error show characters that their encoding lacks as escapes, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a progress bar can be drawn on this stream. Pipes, files and TERM=dumb get plain lines only."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def printable(text: str) -> str:
    """The text with every control character replaced, because a model may write sequences that drive the terminal.

    Spaces of all scripts stay, and so do the characters that join or separate letters and emoji.
    """
    return "".join(c if _is_harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
ANSI = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def styled(text: str, style: str) -> str:
    """The text with the codes of a terminal around it. `style`: words of ANSI, such as `bold green`."""
    codes = ";".join(ANSI[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m" if codes else text


def has_color(stream: TextIO | None) -> bool:
    """Whether this stream is a terminal whose user has not switched colour off (NO_COLOR, as on no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


class ConsoleHandler(logging.Handler):
    """Prints log records on standard output, above the progress bar `bar` if there is one.

    On a terminal, warnings and errors have a colour, and records whose attribute `style` says so (`styled`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: ProgressBar | None = None
        self._is_broken = False  # standard output cannot be written any more

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; warnings and errors begin with their level."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if self._is_broken or not getattr(record, "console", True):  # a line that the console has had before
            return
        style = getattr(record, "style", "") or LEVEL_STYLES.get(record.levelno, "")
        try:
            if self.bar is not None:
                self.bar.print(text, style)
            else:
                text = styled(text, style) if has_color(sys.stdout) else text
                encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
                sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                sys.stdout.flush()
        except (OSError, ValueError):
            self._is_broken = True  # `| head` or the terminal has ended: the run goes on, its files are whole
            discard_stdout()


def discard_stdout() -> None:
    """Point standard output at /dev/null: flushing its buffer at exit would fail again, with exit code 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class ProgressBar:
    """Step, loss, tokens/s and the time left, in the last line of a terminal.

    It is one line of text in rich's live display: drawing it takes 0.3 ms, an eighth of rich's own progress columns.
    """

    def __init__(self, max_step: int, step: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._max_step, self._first, self._started, self._due = max_step, step, time.perf_counter(), 0.0
        self._console = Console()
        # Without a refreshing thread, which would compete with the training. Other prints appear above the display.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._console.show_cursor(True)  # a killed run would leave the terminal without a cursor

    def is_due(self) -> bool:
        """Whether REFRESH_SECONDS have passed since the last drawing. Costs one clock reading."""
        return time.perf_counter() >= self._due

    def show(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        """Draw the bar now. None leaves a value out."""
        from rich.text import Text

        now = time.perf_counter()
        self._due = now + REFRESH_SECONDS
        line = progress_line(
            step,
            self._max_step,
            loss,
            tokens_per_second,
            seconds_left(step - self._first, self._max_step - step, now - self._started),
            self._console.width,
        )
        with contextlib.suppress(OSError, ValueError):
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def print(self, text: str, style: str = "") -> None:
        """Print a line above the bar, in the colours that `style` names (`styled`)."""
        self._console.out(text, style=style or None, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()


class CountBar:
    """How much of a task is done: one line on standard error, rewritten in place. Nothing if that is no terminal.

    Use it as a context manager; the line is gone afterwards.
    """

    def __init__(self, total: int, enabled: bool = True) -> None:
        self._total, self._started, self._due = total, time.perf_counter(), 0.0
        self._enabled = enabled and total > 0 and is_terminal(sys.stderr)

    def __enter__(self) -> "CountBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._write("")

    def show(self, done: int) -> None:
        """Show how many are done; at most every REFRESH_SECONDS."""
        now = time.perf_counter()
        if not self._enabled or now < self._due:
            return
        self._due = now + REFRESH_SECONDS
        left = seconds_left(done, self._total - done, now - self._started)
        columns = shutil.get_terminal_size().columns
        self._write(progress_line(done, self._total, None, None, left, columns)[: columns - 1])

    def _write(self, line: str) -> None:
        if self._enabled:
            with contextlib.suppress(OSError, ValueError):
                encoding = sys.stderr.encoding or "utf-8"
                sys.stderr.write("\r\x1b[K" + line.encode(encoding, "replace").decode(encoding))
                sys.stderr.flush()


def seconds_left(done: int, left: int, elapsed: float) -> float | None:
    """Seconds for the steps left at the mean pace so far, which includes validation and saving. None before step 1."""
    return elapsed / done * left if done > 0 else None


def progress_line(
    step: int, max_step: int, loss: float | None, speed: float | None, left: float | None, columns: int
) -> str:
    """`━━━━━───── 120/600  loss 3.123  12,345 tok/s  ETA 0:01:02`, as wide as the terminal and at most 100 columns.

    Args:
        step: steps done.
        max_step: steps of the whole run.
        loss: nats per token, or None to leave it out.
        speed: tokens per second, or None to leave it out.
        left: seconds until the end, or None to leave it out.
        columns: width of the terminal.
    """
    parts = [f"{step}/{max_step}"]
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if speed is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
    text = "  ".join(parts)
    room = min(columns, 100) - len(text) - 2
    filled = max(0, room) * min(step, max_step) // max(1, max_step)
    return "━" * filled + "─" * (room - filled) + " " + text if room >= 5 else text
