"""Whether a training step fits into the memory of its device, and the largest micro batch that does."""

from collections.abc import Callable

from txl.config.machine_rules import is_old_gpu
from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.plan.batch_split import divisors
from txl.system.hardware import main_memory_gb, visible_gpus

GIB = 2**30 / 1e9  # GB
USABLE = 0.9  # of a device's memory: the rest is fragmentation, and what the estimate leaves out
SURELY_TOO_LARGE = 1.2  # times the memory: the estimate is not that wrong


def device_memory_gb(config: RunConfig, processes_per_node: int) -> float | None:
    """GB that one process can use; None if it is not known here.

    A GPU's memory is that of `hardware`, or what this machine's GPU has. Processes on CPUs share the machine's memory,
    or under SLURM `cluster.mem_gb`.
    """
    hardware = config.hardware
    if hardware.memory_gb is not None:
        return hardware.memory_gb
    gpus = visible_gpus() if hardware.gpus is None else []
    if gpus:
        return None if gpus[0].memory_gb is None else gpus[0].memory_gb * GIB
    if hardware.gpus:
        return None
    if config.cluster.name == "slurm":
        return config.cluster.mem_gb and config.cluster.mem_gb / processes_per_node
    machine = main_memory_gb()
    return None if machine is None else round(machine * GIB / processes_per_node, 1)


def fitting_micro_batch(config: RunConfig, micro: int, estimate: Callable[[int], float], available: float) -> int:
    """The micro batch that a run uses: as configured or published, otherwise the largest that fits.

    Args:
        config: The run.
        micro: As configured, published, or all sequences of a process.
        estimate: Micro batch -> GB that a step takes.
        available: GB that one process can use.

    Returns:
        `micro`, or a smaller divisor of it, so that the global batch stays the same.

    Raises:
        ConfigError: If not even one sequence at a time fits, or a configured micro batch surely does not.
    """
    train = config.train
    published = (train.micro_batch_cap or {}).get(config.hardware.name, {}).get(config.precision.name.name)
    sizes = [size for size in divisors(micro) if estimate(size) <= USABLE * available]
    if not sizes and estimate(1) > SURELY_TOO_LARGE * available:
        smaller = [] if config.recompute else ["recompute=true"]
        half = "fp16" if is_old_gpu(config.hardware.gpu) else "bf16"
        smaller += [] if config.precision.name.is_half else [f"precision={half}"]
        raise ConfigError(
            f"hardware={config.hardware.name}: a training step takes about {estimate(1):.1f} GB per process even with "
            f"train.micro_batch_size=1, and {available:g} GB are there; use "
            f"{', '.join([*smaller, 'a smaller model'])}, or hardware with more memory"
        )
    if train.micro_batch_size or train.grad_accum_steps:
        _check_chosen(config, micro, estimate, available, max(sizes, default=1))
        return micro
    if published:
        return micro
    return max(sizes, default=1)


def _check_chosen(
    config: RunConfig, micro: int, estimate: Callable[[int], float], available: float, largest: int
) -> None:
    """Raises ConfigError if the micro batch that the user chose can never fit; `largest` is the largest that does."""
    if estimate(micro) <= SURELY_TOO_LARGE * available:
        return
    train = config.train
    key = "train.micro_batch_size" if train.micro_batch_size else "train.grad_accum_steps"
    value = train.micro_batch_size or train.grad_accum_steps
    remedy = largest if train.micro_batch_size else micro * (train.grad_accum_steps or 1) // largest
    raise ConfigError(
        f"{key}={value}: a training step takes about {estimate(micro):.1f} GB per process, and "
        f"hardware={config.hardware.name} has {available:g} GB; use {key}={remedy} (the global batch stays the same)"
    )
