"""train.py and evaluate.py in the tests' own process.

A new process takes three to four seconds of CPU time before its first step, most of it for importing torch.
"""

import logging
import signal

import pytest

from tests.support.configurations import composed
from txl.config.schema import EvaluateConfig, RunConfig
from txl.launch import rank
from txl.launch.start import Launcher
from txl.plan.batch_split import with_global_batch
from txl.system.process_exit import STOP_SIGNALS


def train_here(*overrides: str, expect: int = 0) -> None:
    """Do what `python train.py OVERRIDES` does, for a single rank and without drawing the loss curve.

    Args:
        *overrides: As on the command line.
        expect: The exit code that the run must have.
    """
    _start_here(with_global_batch(composed(*overrides)), expect)


def evaluate_here(*overrides: str, expect: int = 0) -> None:
    """Do what `python evaluate.py OVERRIDES` does, for a single rank; arguments as of `train_here`."""
    _start_here(composed(*overrides, name="evaluate", kind=EvaluateConfig), expect)


def _start_here(config: RunConfig | EvaluateConfig, expect: int) -> None:
    """Signal handlers and loggers are as before afterwards."""
    package = logging.getLogger("txl")
    log_handlers, level = list(package.handlers), package.level
    signal_handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "draw_loss_curve", lambda run_dir: None)
        try:
            code = Launcher().start(config)
        finally:
            package.handlers[:] = log_handlers
            package.setLevel(level)
            for number, handler in signal_handlers.items():
                signal.signal(number, handler)
    assert code == expect, f"exit code {code}"
