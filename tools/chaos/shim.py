"""The library that counts, records, fails or delays the file operations below a folder: built, loaded, told what to do.

It has to be loaded before Python starts, so `reexec_with_shim` starts this Python again with LD_PRELOAD.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
LOADED = "TXL_CHAOS_SHIM"  # in the environment: the library that this process was started with

COUNT, KILL, FAIL_ONCE, FAIL_FROM, DELAY = range(5)  # as in shim.c


@dataclass(frozen=True)
class Fault:
    """What happens at one file operation of a run.

    Args:
        action: COUNT (nothing), KILL (before the operation), FAIL_ONCE, FAIL_FROM (this one and all later ones), DELAY.
        at: The number of the operation, from 0.
        error: The errno of a failure; milliseconds of a delay.
    """

    action: int = COUNT
    at: int = -1
    error: int = 0


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def build_shim() -> Path:
    """Compiles shim.c, unless that was done before. Raises RuntimeError without a compiler."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("no C compiler: on Debian, apt-get install gcc libc6-dev")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = Path(tempfile.gettempdir()) / f"txl-chaos-{os.getuid()}-{digest}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", partial, SOURCE], check=True)
        os.replace(partial, library)
    return library


def reexec_with_shim() -> None:
    """Starts this program again with the library loaded, and with one thread per process, unless it is already."""
    if LOADED in os.environ:
        return
    library = str(build_shim())
    settings = {"LD_PRELOAD": library, LOADED: library, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    os.execve(sys.executable, sys.orig_argv, os.environ | settings)


class Shim:
    """The loaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[LOADED])
        self._library.chaos_count.restype = ctypes.c_long
        self._library.chaos_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self._library.chaos_prepare()

    def arm(self, folder: Path, fault: Fault, log: int = -1) -> None:
        """Number the operations below a folder in this process and those forked from it.

        Args:
            folder: An absolute path; it need not exist.
            fault: What happens at one of the operations.
            log: A descriptor that gets a record of every operation (`power_cut.py` reads it); -1: none.
        """
        self._library.chaos_arm(str(folder).encode(), fault.action, fault.at, fault.error, log)

    def count(self) -> int:
        """The operations so far, since the last `arm` in a process forked from this one."""
        return int(self._library.chaos_count())
