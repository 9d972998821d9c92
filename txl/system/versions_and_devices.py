"""The record of software versions, devices and settings that a run writes to environment.json."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from txl.files import INSTALLED, PROJECT
from txl.system.hardware import command_output, cpu_count, cpu_model, main_memory_gb, visible_gpus
from txl.version import __version__

PACKAGES = [  # fmt: skip
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


# Environment variables that may explain a number. The whole environment is never recorded: it holds passwords and keys.
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


def environment_record() -> dict[str, Any]:
    """Everything about the machine and the software that may explain a number: plain values, no secrets."""
    found = visible_gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": platform.node(),
        "cpu": cpu_model(),
        "cores": cpu_count(),
        "memory_gb": main_memory_gb(),
        "gpus": [gpu.name for gpu in found],
        "gpu_memory_gb": [gpu.memory_gb for gpu in found],
        "driver": found[0].driver if found else None,
        "packages": {"txl": __version__} | package_versions(),
        "git": None if INSTALLED else git_state(PROJECT),  # the environment may lie in some other checkout
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch": torch_record(),
    }


def torch_record() -> dict[str, Any]:
    """How torch was built and is set up, or {} if this process has not imported it."""
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
    """Versions of the installed packages among PACKAGES."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a checkout and whether tracked files differ from it ("dirty"), or None if it is no checkout."""
    commit = command_output(["git", "-C", str(folder), "rev-parse", "HEAD"]).strip()
    if not commit:
        return None
    changed = command_output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": bool(changed.strip())}
