"""Whether the installed build of torch has kernels for the GPUs, found out without importing torch."""

import importlib.util
import re
from pathlib import Path

from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError
from txl.system.hardware import visible_gpus

LAST_FOR_V100 = (12, 6)  # CUDA of the newest official builds with kernels for sm_70


def check_torch_build(config: RunConfig | EvaluateConfig) -> None:
    """Raises ConfigError if the GPUs are V100s and the installed torch is an official build without kernels for them.

    Jobs with another Python or a container have another torch: those are not judged.
    """
    hardware, cluster = config.hardware, config.cluster
    if hardware.gpus == 0 or cluster.python is not None or cluster.container is not None:
        return
    here = visible_gpus() if hardware.gpus is None and hardware.gpu is None else []
    gpu = hardware.gpu or (here[0].name if here else "")
    version = torch_version()
    built = re.fullmatch(r"[\d.]+\+cu(\d+)(\d)", version)
    if "V100" in gpu and built and (int(built[1]), int(built[2])) > LAST_FOR_V100:
        raise ConfigError(
            f"hardware={hardware.name}: torch {version} has no kernels for {gpu} (sm_70); install a build for CUDA "
            "12.6: make install PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cu126'"
        )


def torch_version() -> str:
    """The version of the installed torch, with its build, such as 2.10.0+cu128; empty if it cannot be read."""
    found = importlib.util.find_spec("torch")
    for folder in (found.submodule_search_locations or []) if found else []:
        try:
            text = Path(folder, "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        version = re.search(r"^__version__ = ['\"](.+?)['\"]", text, re.MULTILINE)
        if version:
            return version[1]
    return ""
