"""Set up this process: its device, cores, threads and allocator. Copies from the host to the device."""

import contextlib
import ctypes
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txl.config.machine import HardwareConfig
from txl.errors import ConfigError
from txl.system.hardware import cpu_count, detect_gpus, parse_core_list

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def pick_device(hardware: HardwareConfig, local_rank: int) -> "torch.device":
    """The device of this rank: a GPU, or the CPU if hardware.gpus is 0 or this machine has no GPU.

    Raises ConfigError if the configuration asks for GPUs that torch cannot use, or if hardware=auto overlooks one.
    """
    wanted = detect_gpus()[1] if hardware.gpus is None else hardware.gpus
    import torch

    if wanted == 0:
        if hardware.gpus is None and (overlooked := torch.cuda.device_count()):
            raise ConfigError(
                f"hardware={hardware.name} finds no GPU by nvidia-smi, but torch sees {overlooked}; use "
                f"hardware.gpus={overlooked}, or hardware=cpu to compute on the CPU"
            )
        return torch.device("cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        built = "was built without CUDA" if torch.version.cuda is None else "finds no usable CUDA device"
        raise ConfigError(
            f"hardware={hardware.name} needs GPUs, but torch {torch.__version__} {built}; "
            "install a CUDA build of torch or use hardware=cpu"
        )
    if available == 1 and _sees_only_its_own_gpu():
        local_rank = 0
    if local_rank >= available:
        raise ConfigError(f"gpus={local_rank + 1} or more: this machine shows {available}; use gpus={available}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _sees_only_its_own_gpu() -> bool:
    """Whether whoever started this rank selected one GPU for it, as `srun --gpus-per-task=1` does."""
    selection = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return selection != "" and "," not in selection


def use_deterministic_kernels(on: bool) -> None:
    """Let every operation give the same bits for the same input; one that cannot is an error. `on` False: the default.

    Call it before the first matrix product, because cuBLAS reads its variable then.
    """
    import torch

    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses products on a GPU
    if on != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler: more than a second
        torch.use_deterministic_algorithms(on)


def bind_to_numa_node(device: "torch.device", local_rank: int, local_world_size: int) -> None:
    """Keep this rank on the cores of its GPU's NUMA node, or, on a CPU, on its share of the NUMA nodes.

    Does nothing if fewer than two NUMA nodes are known, or if SLURM has bound this task to one node already.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    nodes = [cores & allowed for cores in numa_nodes().values() if cores & allowed]
    if len(nodes) < 2:
        return
    near = cores_near_gpu(device.index) & allowed if device.type == "cuda" else set()
    os.sched_setaffinity(0, near or nodes[local_rank * len(nodes) // local_world_size])


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> dict[int, set[int]]:
    """The cores of each NUMA node, by the node's number."""
    found: dict[int, set[int]] = {}
    for path in root.glob("node[0-9]*/cpulist"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.parent.name.removeprefix("node"))] = parse_core_list(path.read_text())
    return dict(sorted(found.items()))


def cores_near_gpu(index: int) -> set[int]:
    """The cores on the NUMA node of a GPU, or an empty set if the system does not tell."""
    import torch

    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        gpu: Any = torch.cuda.get_device_properties(index)  # torch's stubs do not know its pci fields
        bus = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
        return parse_core_list(Path(f"/sys/bus/pci/devices/{bus}/local_cpulist").read_text())
    return set()


def set_threads(device: "torch.device", local_world_size: int) -> None:
    """Divide the cores among the ranks of this machine, unless OMP_NUM_THREADS is set or the device is a GPU."""
    import torch

    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_rank(cpu_count(), local_world_size, torch.get_num_threads()))


def threads_per_rank(cores: int, ranks: int, torch_threads: int) -> int:
    """An equal share of the cores, and at most `torch_threads`, torch's own choice: it does not count hyper-threads."""
    return max(1, min(cores // ranks, torch_threads))


def keep_freed_memory(device: "torch.device") -> None:
    """On a CPU, let glibc keep large freed blocks instead of returning them to the system after every step.

    Page faults of returned memory took a third of a training step of the base model (docs/speed-log.md). In exchange
    the process keeps its peak memory.
    """
    if device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)
            mallopt(M_TOP_PAD, 64 << 20)


def should_compile(compile: bool | str, device: "torch.device") -> bool:
    """Whether layers go through torch.compile. `auto` means on a GPU: on a CPU it gains less than compiling takes.

    If no compiler is installed, the answer is no, with a warning: the numbers are the same, only slower.
    """
    if compile is False or (compile == "auto" and device.type != "cuda"):
        return False
    chosen, usual = ("CXX", "g++") if device.type == "cpu" else ("CC", "gcc")
    found = any(shutil.which(name) for name in (os.environ.get(chosen, usual), usual, "clang"))
    missing = None if found else f"no {usual} or clang was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "triton is not installed"
    if missing:
        log.warning("compile=%s: %s, so layers run as they are, only slower", str(compile).lower(), missing)
    return missing is None


def copy_to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy from the host to a device; to a GPU through pinned memory, so that the host does not wait for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
