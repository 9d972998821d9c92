"""The machine: its accelerators, cores, peak speed, and a record of it all for the run folder.

Nothing here needs torch until a device is picked: the plan of a run must answer at once.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from txl.choices import Arithmetic
from txl.config import HardwareConfig
from txl.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
TERA = 1e12
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h

# Dense matrix products, from the vendor's data sheets, without sparsity; V100 and T4 know neither TF32 nor bf16.
# The first pattern found in a GPU's name counts.
PEAK_TERAFLOPS = {
    r"H100.*PCIe|H100 PCIe": {"fp64": 51, "fp32": 51, "tf32": 378, "bf16": 756, "fp16": 756},
    r"H100|H200": {"fp64": 67, "fp32": 67, "tf32": 494.5, "bf16": 989, "fp16": 989},
    r"A100": {"fp64": 19.5, "fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    r"V100": {"fp64": 7.8, "fp32": 15.7, "fp16": 125},
    r"\bT4\b": {"fp64": 0.25, "fp32": 8.1, "fp16": 65},
}

PACKAGES = [  # fmt: skip
    "txl",
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "hydra-submitit-launcher",
    "submitit",
    "wandb",
    "safetensors",
    "sacremoses",
    "tokenizers",
    "rich",
    "matplotlib",
    "triton",
]

# What may explain a run. Never the whole environment: it holds passwords and keys.
VARIABLES = [  # fmt: skip
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "PYTHONHASHSEED",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NCCL_DEBUG",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "NCCL_IB_HCA",
    "NCCL_P2P_DISABLE",
    "GLOO_SOCKET_IFNAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CPUS_PER_TASK",
    "TXL_DATA",
    "TXL_CACHE",
]


class Gpu(NamedTuple):
    name: str
    memory_gb: float | None
    driver: str | None


# --------------------------------------------------------------------------- what is there


def detect() -> tuple[str, int]:
    """(name of the first visible GPU, number of visible GPUs); ("cpu", 0) where there is none."""
    found = gpus()
    return (found[0].name, len(found)) if found else ("cpu", 0)


def gpus() -> list[Gpu]:
    """The GPUs that a process started now would see: nvidia-smi's, as CUDA_VISIBLE_DEVICES selects them."""
    return visible(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: list[tuple[str, Gpu]], selection: str | None) -> list[Gpu]:
    """The selected ones of (uuid, GPU) pairs: by number or start of a uuid; the first unknown entry ends the list."""
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
def _nvidia_smi() -> list[tuple[str, Gpu]]:
    query = ["nvidia-smi", "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    lines = _output(query, timeout=20).splitlines()
    found = []
    for uuid, name, memory, driver in (re.split(r",\s*", line) for line in lines if line.count(",") == 3):
        gigabytes = round(float(memory) / 1024, 1) if re.fullmatch(r"[\d.]+", memory) else None
        found.append((uuid, Gpu(name, gigabytes, driver)))
    return found


def cpu_count() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, int(quota))) if quota else cores


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that a container was given (cgroup v2, then v1); None: no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return quota / int((root / "cpu/cpu.cfs_period_us").read_text()) if quota > 0 else None
    return None


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


def core_set(text: str) -> set[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}"""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


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


def peak_flops(gpu: str, arithmetic: Arithmetic) -> float | None:
    """FLOP/s of dense matrix products on one GPU, by its name; None for an unknown one or a missing unit."""
    for pattern, teraflops in PEAK_TERAFLOPS.items():
        if re.search(pattern, gpu, re.IGNORECASE):
            peak = teraflops.get(arithmetic.value)
            return None if peak is None else peak * TERA
    return None


# --------------------------------------------------------------------------- the record


def environment_record() -> dict:
    """Everything about the machine and the software that may explain a number; plain values, no secrets."""
    found = gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": platform.node(),
        "cpu": cpu_model(),
        "cores": cpu_count(),
        "memory_gb": memory_gb(),
        "gpus": [gpu.name for gpu in found],
        "gpu_memory_gb": [gpu.memory_gb for gpu in found],
        "driver": found[0].driver if found else None,
        "packages": package_versions(),
        "git": git_state(PROJECT),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch": torch_record(),
    }


def torch_record() -> dict:
    """How torch was built and is set up; empty where this process has not imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_state(folder: Path) -> dict | None:
    """Commit of a checkout, and whether files differ from it; None outside of one."""
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"]).strip()
    if not commit:
        return None
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": bool(changed.strip())}


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def memory_gb() -> float | None:
    """Main memory in GiB."""
    with contextlib.suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def _output(command: list[str], timeout: float = 5) -> str:
    """Standard output of a command; nothing where it is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
