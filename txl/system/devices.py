"""Set up this process: its device, its cores and threads, its allocator; copies to the device."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from txl.config.machine import HardwareConfig
from txl.errors import ConfigError

if TYPE_CHECKING:
    import torch


from txl.system.hardware import core_set, cpu_count, detect

log = logging.getLogger(__name__)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


# --------------------------------------------------------------------------- what is used


def pick_device(hardware: HardwareConfig, local_rank: int) -> "torch.device":
    """The device of this rank. ConfigError where the configuration asks for GPUs that torch cannot use."""
    wanted = detect()[1] if hardware.gpus is None else hardware.gpus
    import torch

    if wanted == 0:
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there == 0:
        built = "was built without CUDA" if torch.version.cuda is None else "finds no usable CUDA device"
        raise ConfigError(
            f"hardware={hardware.name} needs GPUs, but torch {torch.__version__} {built}; "
            "install a CUDA build of torch or use hardware=cpu"
        )
    if local_rank >= there:
        raise ConfigError(f"gpus={local_rank + 1} or more: this machine shows {there}; use gpus={there}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def bind_to_memory(device: "torch.device", local_rank: int, local_world_size: int) -> None:
    """Keep this rank on the cores beside its GPU's memory bus, or on its share of the NUMA nodes.

    Nothing where the machine has one NUMA node, does not tell, or SLURM has bound this task to one already.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    nodes = [cores & allowed for cores in numa_nodes().values() if cores & allowed]
    if len(nodes) < 2:
        return
    beside = cores_beside_gpu(local_rank) & allowed if device.type == "cuda" else set()
    os.sched_setaffinity(0, beside or nodes[local_rank * len(nodes) // local_world_size])


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> dict[int, set[int]]:
    """Cores of each NUMA node."""
    found = {}
    for path in root.glob("node[0-9]*/cpulist"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.parent.name.removeprefix("node"))] = core_set(path.read_text())
    return dict(sorted(found.items()))


def cores_beside_gpu(index: int) -> set[int]:
    """Cores on the same memory bus as this process' GPU; empty where the machine does not tell."""
    import torch

    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        gpu = torch.cuda.get_device_properties(index)
        bus = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
        return core_set(Path(f"/sys/bus/pci/devices/{bus}/local_cpulist").read_text())
    return set()


def set_threads(device: "torch.device", local_world_size: int) -> None:
    """Share the cores among this machine's ranks; OMP_NUM_THREADS, where it is set, is left to decide."""
    import torch

    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_rank(cpu_count(), local_world_size, torch.get_num_threads()))


def threads_per_rank(cores: int, ranks: int, most: int) -> int:
    """At most `most`: torch's own choice, which leaves hyper-threads alone."""
    return max(1, min(cores // ranks, most))


def keep_freed_memory(device: "torch.device") -> None:
    """Let glibc reuse large blocks instead of giving them back: on a CPU, every step would fault in its pages anew.

    That took a third of a training step of the base model (docs/speed-log.md). The process keeps its peak memory.
    """
    if device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)
            mallopt(M_TOP_PAD, 64 << 20)


def wants_compiler(compile: bool | str, device: "torch.device") -> bool:
    """Whether layers go through torch.compile. auto: on a GPU; on a CPU it gains less than it takes to compile.

    A machine that has no compiler computes the same without, and says so.
    """
    if compile is False or (compile == "auto" and device.type != "cuda"):
        return False
    chosen, usual = ("CXX", "g++") if device.type == "cpu" else ("CC", "gcc")
    there = any(shutil.which(name) for name in (os.environ.get(chosen, usual), usual, "clang"))
    missing = None if there else f"no {usual} or clang was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "triton is not installed"
    if missing:
        log.warning("compile=%s: %s, so layers run as they are, only slower", str(compile).lower(), missing)
    return missing is None


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """From the host to a device; to a GPU from pinned memory, whose copy the host need not wait for."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
