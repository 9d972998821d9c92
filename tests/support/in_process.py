"""Training in the tests' own process."""

import signal

import pytest

from tests.support.configurations import composed
from txl.launch import rank
from txl.launch.start import Launcher
from txl.plan.batch_split import with_global_batch
from txl.train.trainer import STOP_SIGNALS


def train_here(*overrides: str, expect: int = 0) -> None:
    """Do in this process what `python train.py OVERRIDES` does, for a single rank and without the picture at its end.

    A new process takes three to four seconds of CPU time before its first step, most of it for importing torch.

    Args:
        *overrides: As on the command line.
        expect: The exit code that the run must have.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "draw_loss_curve", lambda run_dir: None)
        try:
            code = Launcher().start(with_global_batch(composed(*overrides)))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert code == expect, f"exit code {code}"
