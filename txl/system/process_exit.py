"""Exit codes, and ending a process without Python's teardown."""

import atexit
import contextlib
import os
import signal
import sys
from typing import NoReturn

BAD_CONFIGURATION = 2  # the configuration, the data or a checkpoint was refused
MISSED_TARGET = 3  # a perplexity or throughput that was asked for
DIVERGED = 4  # the training's loss, gradient or weights are not finite; the last finite checkpoint is kept
INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C; a training has saved
TERMINATED = 128 + signal.SIGTERM  # a training has saved
PREEMPTED = 128 + signal.SIGUSR2  # SLURM's time limit or preemption: saved, and to be requeued


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
