"""What the machine has: GPUs, cores, memory. Imports no torch, because a plan or a mistake must answer at once."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU as nvidia-smi describes it."""

    name: str
    memory_gb: float | None  # GiB; None if the driver does not tell
    driver: str | None


# --------------------------------------------------------------------------- GPUs


def detect_gpus() -> tuple[str, int]:
    """(name of the first visible GPU, number of visible GPUs), or ("cpu", 0) if there is none."""
    found = visible_gpus()
    return (found[0].name, len(found)) if found else ("cpu", 0)


def visible_gpus() -> list[Gpu]:
    """The GPUs that a process started now would see: those that CUDA_VISIBLE_DEVICES selects.

    They are asked of nvidia-smi, or of the driver's files where that program is missing.
    """
    return _select_gpus(query_nvidia_smi() or read_driver_files(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _select_gpus(found: list[tuple[str, Gpu]], selection: str | None) -> list[Gpu]:
    """The selected GPUs of (uuid, GPU) pairs: by number or start of a uuid. The first unknown entry ends the list."""
    if selection is None:
        return [gpu for _, gpu in found]
    chosen = []
    for entry in filter(None, (part.strip() for part in selection.split(","))):
        if entry.isdigit() and int(entry) < len(found):
            chosen.append(found[int(entry)][1])
            continue
        # A slice of a GPU (MIG) does not say here which GPU it belongs to.
        match = [gpu for uuid, gpu in found if uuid.startswith(entry) or entry.startswith("MIG-")]
        if not match:
            break
        chosen.append(match[0])
    return chosen


@functools.cache
def query_nvidia_smi() -> list[tuple[str, Gpu]]:
    """(uuid, GPU) of every GPU that nvidia-smi lists; asked once per process."""
    query = ["nvidia-smi", "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    lines = command_output(query, timeout=20).splitlines()
    found = []
    for uuid, name, memory, driver in (re.split(r",\s*", line) for line in lines if line.count(",") == 3):
        gigabytes = round(float(memory) / 1024, 1) if re.fullmatch(r"[\d.]+", memory) else None
        found.append((uuid, Gpu(name, gigabytes, driver)))
    return found


def read_driver_files(root: Path = Path("/proc/driver/nvidia")) -> list[tuple[str, Gpu]]:
    """(uuid, GPU) of every GPU that NVIDIA's driver lists, without its memory, which is not told there."""
    found = []
    version = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", _text(root / "version"))
    for file in sorted(root.glob("gpus/*/information")):
        values = dict(re.findall(r"^([^:\n]+):\s*(.*)$", _text(file), re.MULTILINE))
        gpu = Gpu(values.get("Model", "NVIDIA GPU"), None, version[1] if version else None)
        found.append((values.get("GPU UUID", ""), gpu))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


# --------------------------------------------------------------------------- cores and memory


def cpu_count() -> int:
    """Cores that this process may use: those of its affinity, at most the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container_cpu_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def container_cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the container may use (cgroup v2, then v1), or None if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        microseconds = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return microseconds / int((root / "cpu/cpu.cfs_period_us").read_text()) if microseconds > 0 else None
    return None


def parse_core_list(text: str) -> set[int]:
    """The numbers in a list of ranges: `0-3,8` -> {0, 1, 2, 3, 8}."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def main_memory_gb() -> float | None:
    """Main memory in GiB, or None if the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def command_output(command: list[str], timeout: float = 5) -> str:
    """Standard output of a command, or "" if the command is missing, fails or takes longer than `timeout` seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
