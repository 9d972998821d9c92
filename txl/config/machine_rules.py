"""The rules of the machine: arithmetic, kernels, and who starts the ranks."""

import os
import re

from txl.config.machine import ClusterConfig
from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import refuse_unless


def check_machine(config: RunConfig | EvaluateConfig) -> None:
    """Raises ConfigError if the machine cannot compute so, or if nothing would start the ranks."""
    check_arithmetic(config)
    here = config.cluster.name == "local" and not {"RANK", "SUBMITIT_EXECUTOR"} & set(os.environ)
    planned = isinstance(config, RunConfig) and config.dry_run
    rule = "needs a launcher that starts every node, and cluster=local is this machine; use cluster=slurm or torchrun"
    refuse_unless(config.nodes == 1 or not here or planned, "nodes", config.nodes, rule)
    known = config.cluster.name in ("local", "slurm", "srun")
    refuse_unless(known, "cluster.name", config.cluster.name, "must be local, slurm or srun")
    if config.cluster.name == "slurm":
        _check_slurm(config)
    else:
        _check_no_slurm_options(config.cluster)


def check_arithmetic(config: RunConfig | EvaluateConfig) -> None:
    """Raises ConfigError if the machine cannot compute in the chosen precision."""
    hardware, arithmetic = config.hardware, config.precision.name
    if hardware.gpus == 0:
        check_cpu_arithmetic(arithmetic, f"hardware={hardware.name}")
    rule = f"needs an Ampere or newer GPU, but hardware={hardware.name} has {hardware.gpu}; use precision=fp32 or fp16"
    refuse_unless(
        not is_old_gpu(hardware.gpu) or arithmetic not in (Arithmetic.tf32, Arithmetic.bf16),
        "precision",
        arithmetic,
        rule,
    )
    scale = config.precision.initial_loss_scale
    rule = "is for precision=fp16 alone, and needed there"
    refuse_unless((scale is None) != (arithmetic is Arithmetic.fp16), "precision.initial_loss_scale", scale, rule)


def is_old_gpu(gpu: str | None) -> bool:
    """Whether a GPU of this name computes neither in bf16 nor in TF32."""
    return bool(re.match("V100|T4", gpu or ""))


def check_cpu_arithmetic(arithmetic: Arithmetic, machine: str) -> None:
    """Raises ConfigError if a CPU cannot compute so. `machine` is what the message calls it: `hardware=cpu`."""
    remedy = {Arithmetic.fp16: "precision=bf16 or precision=fp32", Arithmetic.tf32: "precision=fp32"}
    rule = f"needs a GPU, and {machine} has none; use {remedy.get(arithmetic)}"
    refuse_unless(arithmetic not in remedy, "precision", arithmetic, rule)


def check_kernels(config: RunConfig) -> None:
    """Raises ConfigError if the machine lacks what `attention` or `compile` needs."""
    fused, arithmetic = config.attention is AttentionBackend.triton, config.precision.name
    rule = f"computes in float32 at most, not precision={arithmetic.name}; use attention=eager"
    refuse_unless(not fused or arithmetic is not Arithmetic.fp64, "attention", config.attention, rule)
    rule = f"needs a GPU, and hardware={config.hardware.name} has none; use attention=auto"
    refuse_unless(not fused or config.hardware.gpus != 0, "attention", config.attention, rule)
    varies = config.deterministic and config.attention is AttentionBackend.sdpa and config.hardware.gpus
    rule = "has no deterministic gradient on a GPU, and deterministic=true asks for one; use attention=auto"
    refuse_unless(not varies, "attention", config.attention, rule)
    known = config.compile in (True, False, "auto", "graphs")
    refuse_unless(known, "compile", config.compile, "must be true, false, auto or graphs")
    rule = f"needs a GPU, and hardware={config.hardware.name} has none; use compile=auto"
    refuse_unless(config.compile != "graphs" or config.hardware.gpus != 0, "compile", config.compile, rule)


def _check_no_slurm_options(cluster: ClusterConfig) -> None:
    plain = ClusterConfig(name=cluster.name)
    for option, value in vars(cluster).items():
        if option == "hang_minutes":
            continue
        remedy = "use cluster=slurm and hardware=dgx2 or another, or leave it out"
        rule = f"has no meaning for cluster={cluster.name}; {remedy}"
        refuse_unless(value == getattr(plain, option), f"cluster.{option}", value, rule)


def _check_slurm(config: RunConfig | EvaluateConfig) -> None:
    cluster = config.cluster
    for option in ("minutes", "signal_delay", "max_timeouts"):
        value = getattr(cluster, option)
        refuse_unless(value is not None, f"cluster.{option}", value, "must be above 0")
    most = 30 * (cluster.minutes or 0)
    rule = f"must be at most {most}, half of cluster.minutes={cluster.minutes}: the rest is for starting and training"
    refuse_unless((cluster.signal_delay or 0) <= most, "cluster.signal_delay", cluster.signal_delay, rule)
    for option in ("sbatch", "srun"):
        for flag in getattr(cluster, option):
            rule = f"must be flags such as --exclusive or --cpu-bind=cores: 'cluster.{option}=[\"--exclusive\"]'"
            refuse_unless(flag.startswith("-"), f"cluster.{option}", flag, rule)
    rule = "asks the machine, and the nodes are not this one; use hardware=dgx2 (dgx1, dgxa100, cpu, ...)"
    refuse_unless(config.hardware.gpus is not None, "hardware", config.hardware.name, rule)
