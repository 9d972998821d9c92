"""A rank that our launcher started on this machine: `python -m txl.launch.local_rank FOLDER`.

Signals, and the launcher's end, are provided for before anything is imported that takes time.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from txl.system.process_exit import end_on_stop_signals, leave

LAUNCHER_PID = "TXL_LAUNCHER_PID"  # tells ranks which process started them


def end_with_the_launcher() -> None:
    """End this rank when the launcher that started it is gone, also if that happened before this call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is not None and os.getppid() != int(launcher):
        os._exit(1)


if __name__ == "__main__":
    end_with_the_launcher()
    end_on_stop_signals(quiet=True)  # until the trainer handles them there is nothing to save
    from txl.launch.rank import main

    leave(main(Path(sys.argv[1])))
