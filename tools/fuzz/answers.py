"""What every input must get: success or one short line, soon, and never a traceback."""

import contextlib
import io
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from txl.errors import ConfigError

MOST_MESSAGE = 300  # characters
MOST_SECONDS = 10  # of this process's CPU time


@dataclass(frozen=True)
class Failure:
    """An input that was not answered as it must be."""

    kind: str  # which generator made it
    seed: int  # of the generator: makes the input again
    given: str  # the input, as far as it can be shown
    problem: str


class HangError(BaseException):
    """The work took too long. No `except Exception` handles it."""


def problem_of(work: Callable[[], object]) -> str | None:
    """Does the work; returns what is wrong with its end, or None. A ConfigError of one short line is an answer."""
    try:
        with unheard(), _limited_time():
            work()
    except ConfigError as error:
        return problem_of_message(str(error))
    except HangError:
        return f"takes more than {MOST_SECONDS} s of CPU time, or {60 * MOST_SECONDS} s"
    except (Exception, SystemExit) as error:
        return "traceback: " + "".join(traceback.format_exception(error)[-4:])[-1200:]
    return None


def problem_of_message(message: str) -> str | None:
    """What is wrong with an error message, or None."""
    if "\n" in message or "\r" in message:
        return f"several lines: {message[:300]!r}"
    if len(message) > MOST_MESSAGE:
        return f"{len(message)} characters: {message[:400]}"
    return None if message.strip() else "an empty message"


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Nothing that is printed or logged within is seen; afterwards the package's log is as it was before."""
    package = logging.getLogger("txl")
    handlers, level, propagate = list(package.handlers), package.level, package.propagate
    package.handlers[:], package.propagate = [logging.NullHandler()], False
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        package.handlers[:], package.propagate = handlers, propagate
        package.setLevel(level)


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Raises HangError after MOST_SECONDS of CPU time, or sixty times as many seconds: others may use the machine."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = {number: signal.signal(number, stop) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 60 * MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def show(failure: Failure) -> None:
    """Prints a failure."""
    print(
        f"FAILURE {failure.kind} seed={failure.seed} {failure.given}\n  {failure.problem}", file=sys.stderr, flush=True
    )
