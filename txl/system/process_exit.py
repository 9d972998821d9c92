"""Exit codes, stop signals before a training handles them, and ending a process without Python's teardown."""

import atexit
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

BAD_CONFIGURATION = 2  # the configuration, the data or a checkpoint was refused
MISSED_TARGET = 3  # a perplexity or throughput that was asked for
DIVERGED = 4  # the training's loss, gradient or weights are not finite; the last finite checkpoint is kept
BROKEN_PIPE = 128 + signal.SIGPIPE  # nobody reads what a command prints any more, as with `| head`
INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C; a training has saved
TERMINATED = 128 + signal.SIGTERM  # a training has saved
PREEMPTED = 128 + signal.SIGUSR2  # SLURM's time limit or preemption: saved, and to be requeued

EARLY_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_SIGNALS = (*EARLY_SIGNALS, signal.SIGUSR2)  # USR2: SLURM is about to end or preempt the job


def run_as_process(module: str) -> NoReturn:
    """Import a module and run its `main` on the command line, as all that this process does.

    Signals are handled before anything is imported that takes time, and until the exit code is returned.
    """
    end_on_stop_signals()
    try:
        code = importlib.import_module(module).main(sys.argv[1:])
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; what is still in the buffer goes nowhere
        from txl.system.console import discard_stdout  # signals are handled sooner without its imports

        discard_stdout()
        code = BROKEN_PIPE
    except Exception:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    leave(code)


def end_on_stop_signals(quiet: bool = False) -> None:
    """Until work begins, Ctrl-C and SIGTERM end this process at once, with one line and exit code 130 or 143.

    It also lets signals through that `stop_signals_held` held back while this process was started.

    Args:
        quiet: Print nothing and die of the signal itself, because a launcher speaks to the user. It sees by that that
            this rank has saved nothing, and does not wait for ranks that wait for this one.
    """
    for number in EARLY_SIGNALS:
        signal.signal(number, _end_quietly if quiet else _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY_SIGNALS)


def raise_on_stop_signals() -> None:
    """From here on the first stop signal raises, so that temporary files are removed; a second one ends the process.

    Ctrl-C raises KeyboardInterrupt, SIGTERM SystemExit(143). It does nothing in a process that did not call
    `end_on_stop_signals`, such as a program of the user that imports this package.
    """
    if threading.current_thread() is threading.main_thread():
        for number in EARLY_SIGNALS:
            if signal.getsignal(number) is _end:
                signal.signal(number, _raise_once)


@contextlib.contextmanager
def stop_signals_held() -> Iterator[None]:
    """Around the start of processes: they and this one get stop signals later, when they can handle them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EARLY_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, f"error: stopped by {signal.Signals(number).name}\n".encode())  # print may be interrupted itself
    os._exit(128 + number)


def _end_quietly(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _raise_once(number: int, frame: FrameType | None) -> NoReturn:
    def end(again: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + number)  # the exit code is that of the first signal

    for other in EARLY_SIGNALS:
        signal.signal(other, end)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    os.write(2, b"error: stopped by SIGTERM\n")
    raise SystemExit(TERMINATED)


def leave(code: int) -> NoReturn:
    """Flush what was printed and end this process at once.

    Ranks end like this because gloo's thread frees its last tensor only when it gets the interpreter. If the
    interpreter is being torn down already, that thread aborts the process although its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or interrupted while it was flushed
            stream.flush()
    os._exit(code)


def leave_once_noted() -> None:
    """Under submitit, which still has to write the job's result: call `leave` after that. For successful ranks."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        atexit.register(leave, 0)
