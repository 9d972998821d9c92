"""How many processes there are, and how they share the global batch."""

import os
from dataclasses import replace

from txl.config.rules import check_cpu_arithmetic
from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.system.hardware import detect_gpus


def with_global_batch(config: RunConfig) -> RunConfig:
    """The same run with train.batch_size in place of train.local_batch_size.

    It is the global batch that training computes with, that names the run and that a resume must not change, so it
    takes its place before anything else reads the configuration.
    """
    local = config.train.local_batch_size
    if local is None:
        return config
    nodes, gpus = processes(config)
    train = replace(config.train, batch_size=local * nodes * gpus, local_batch_size=None)
    return replace(config, train=train)


# --------------------------------------------------------------------------- processes and batch


def processes(config: RunConfig) -> tuple[int, int]:
    """(nodes, processes per node), from the configuration, from torchrun, or from the machine."""
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


def split_batch(config: RunConfig, world_size: int) -> tuple[int, int, int]:
    """(sequences of the first process, of every other, micro batch), which is a divisor of the second.

    first + (world_size - 1) * other = train.batch_size.
    """
    train, batch = config.train, config.train.batch_size
    first, others = train.first_rank_batch_size, world_size - 1
    if first is None:
        if batch % world_size:
            fitting = [g for g in range(1, world_size // config.nodes) if batch % (config.nodes * g) == 0]
            raise ConfigError(
                f"train.batch_size={batch} must be a multiple of world_size = {world_size}; "
                f"use {multiples(batch, world_size)}" + (f", or gpus={fitting[-1]}" if fitting else "")
            )
        first = batch // world_size
    elif others == 0:
        raise ConfigError(f"train.first_rank_batch_size={first} needs several processes; leave it out, or use gpus=2")
    elif (batch - first) % others:
        fitting = [size for size in range(1, batch) if (batch - size) % others == 0]
        near = min(fitting, key=lambda size: abs(size - first), default=None)
        raise ConfigError(
            f"train.first_rank_batch_size={first} leaves {batch - first} of train.batch_size={batch}, no multiple of "
            f"{others}, for the other processes; use " + (f"{near}" if near else f"train.batch_size={first + others}")
        )
    local = (batch - first) // others if others else first
    return first, local, micro_batch_of(config, local, world_size)


def micro_batch_of(config: RunConfig, local: int, world_size: int) -> int:
    """Of a process with `local` sequences per step: as given, or as many as fit."""
    train, steps = config.train, config.train.grad_accum_steps
    if steps:
        if local % steps:
            fitting = " or ".join(str(n) for n in nearest_divisors(local, steps))
            raise ConfigError(
                f"train.grad_accum_steps={steps} must divide the {local} sequences of each process "
                f"(train.batch_size={train.batch_size}); use {fitting}"
            )
        return local // steps
    caps = (train.micro_batch_cap or {}).get(config.hardware.name, {})
    micro = train.micro_batch_size or min(local, caps.get(config.precision.name.name, local))
    if local % micro == 0:
        return micro
    fitting = max(size for size in range(1, micro + 1) if local % size == 0)
    if train.first_rank_batch_size is not None:
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide {local}, what train.first_rank_batch_size="
            f"{train.first_rank_batch_size} leaves for every other process; use {fitting}"
        )
    raise ConfigError(
        f"train.batch_size={train.batch_size} must be a multiple of world_size * micro_batch_size = "
        f"{world_size} * {micro}; use {multiples(train.batch_size, world_size * micro)}, "
        f"or train.micro_batch_size={fitting}"
    )


def nearest_divisors(value: int, to: int) -> list[int]:
    """Of `value`: the largest below `to` and the smallest above it, as far as there are such."""
    divisors = [n for n in range(1, value + 1) if value % n == 0]
    return [n for n in divisors if n < to][-1:] + [n for n in divisors if n > to][:1]


def multiples(value: int, of: int) -> str:
    """The multiples of `of` around a value: `192 or 384`."""
    below = value // of * of
    return f"{below} or {below + of}" if below else str(of)
