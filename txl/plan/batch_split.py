"""How many processes there are, and how they share the global batch."""

import math
import os
from dataclasses import replace
from typing import TypeVar

from txl.config.machine_rules import check_cpu_arithmetic
from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError
from txl.system.hardware import detect_gpus

Run = TypeVar("Run", bound=RunConfig)


def with_global_batch(config: Run) -> Run:
    """Returns the same run with train.batch_size in place of train.local_batch_size.

    The global batch is what training computes with, what names the run, and what a resume must not change. So it is
    set before anything else reads the configuration.
    """
    local = config.train.local_batch_size
    if local is None:
        return config
    nodes, gpus = processes(config)
    train = replace(config.train, batch_size=local * nodes * gpus, local_batch_size=None)
    return replace(config, train=train)


# --------------------------------------------------------------------------- processes


def processes(config: RunConfig | EvaluateConfig) -> tuple[int, int]:
    """Returns (nodes, processes per node): from the configuration, from torchrun, or from the machine.

    Raises:
        ConfigError: A launcher started another number, or the machine has fewer GPUs.
    """
    wanted = config.gpus or config.hardware.gpus or None
    if "WORLD_SIZE" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", wanted or 1))
        for key, value, started in (("nodes", config.nodes, world // local), ("gpus", wanted, local)):
            if value not in (None, started):
                raise ConfigError(f"{key}={value} but the launcher started {started}; set {key}={started}")
        return config.nodes, local
    if config.hardware.gpus is None:
        there = detect_gpus()[1]
        if there == 0:
            check_cpu_arithmetic(config.precision.name, "this machine")
        elif config.gpus and config.gpus > there:
            raise ConfigError(f"gpus={config.gpus} but this machine has {there}; use gpus={there} or hardware=cpu")
        wanted = config.gpus or there
    return config.nodes, wanted or 1


# --------------------------------------------------------------------------- batch


def split_batch(config: RunConfig, world_size: int) -> tuple[int, int, int]:
    """Splits train.batch_size among the processes.

    Returns:
        Sequences of the first process, sequences of every other process, and the micro batch, which divides both or,
        with train.first_rank_batch_size, the second. first + (world_size - 1) * other = train.batch_size.

    Raises:
        ConfigError: The batch cannot be split like this. The message names sizes that can.
    """
    train, batch = config.train, config.train.batch_size
    first, others = train.first_rank_batch_size, world_size - 1
    if first is None:
        if batch % world_size:
            fitting = [g for g in range(1, world_size // config.nodes) if batch % (config.nodes * g) == 0]
            raise ConfigError(
                f"train.batch_size={batch} must be a multiple of world_size = {world_size}; "
                f"use {_multiples(batch, world_size)}" + (f", or gpus={fitting[-1]}" if fitting else "")
            )
        first = batch // world_size
    elif others == 0:
        raise ConfigError(f"train.first_rank_batch_size={first} needs several processes; leave it out, or use gpus=2")
    elif (batch - first) % others:
        raise ConfigError(
            f"train.first_rank_batch_size={first} leaves {batch - first} of train.batch_size={batch}, no multiple of "
            f"{others}, for the other processes; use {_first_share(batch, first, others)}"
        )
    local = (batch - first) // others if others else first
    return first, local, _micro_batch(config, local, world_size)


def _first_share(batch: int, first: int, others: int) -> str:
    """The nearest size to `first` that leaves each of the other processes the same, or a batch for which it does."""
    near = [size for size in (first - (first - batch) % others, first + (batch - first) % others) if 0 < size < batch]
    best = min(near, key=lambda size: abs(size - first), default=None)
    return str(best) if best else f"train.batch_size={first + others}"


def _micro_batch(config: RunConfig, local: int, world_size: int) -> int:
    """Sequences of a forward pass of a process that has `local` per step: as configured, or as many as fit."""
    train, steps = config.train, config.train.grad_accum_steps
    if steps:
        if local % steps:
            fitting = " or ".join(str(n) for n in _nearest_divisors(local, steps))
            raise ConfigError(
                f"train.grad_accum_steps={steps} must divide the {local} sequences of each process "
                f"(train.batch_size={train.batch_size}); use {fitting}"
            )
        return local // steps
    caps = (train.micro_batch_cap or {}).get(config.hardware.name, {})
    micro = train.micro_batch_size or min(local, caps.get(config.precision.name.name, local))
    if local % micro == 0:
        return micro
    largest = max(size for size in divisors(local) if size <= micro)
    if train.first_rank_batch_size is not None:
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide {local}, what train.first_rank_batch_size="
            f"{train.first_rank_batch_size} leaves for every other process; use {largest}"
        )
    raise ConfigError(
        f"train.batch_size={train.batch_size} must be a multiple of world_size * micro_batch_size = "
        f"{world_size} * {micro}; use {_multiples(train.batch_size, world_size * micro)}, "
        f"or train.micro_batch_size={largest}"
    )


def divisors(value: int) -> list[int]:
    """All divisors of a number, in rising order."""
    small = [n for n in range(1, math.isqrt(value) + 1) if value % n == 0]
    return sorted({*small, *(value // n for n in small)})


def _nearest_divisors(value: int, to: int) -> list[int]:
    """The largest divisor of `value` below `to` and the smallest above it, as far as they exist."""
    found = divisors(value)
    return [n for n in found if n < to][-1:] + [n for n in found if n > to][:1]


def _multiples(value: int, of: int) -> str:
    """The multiples of `of` around a value: `192 or 384`."""
    below = value // of * of
    return f"{below} or {below + of}" if below else str(of)
