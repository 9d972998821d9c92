"""Rank, world size and rendezvous of a SLURM task, from its environment."""

import os
import socket
from collections.abc import Mapping

from txl.errors import ConfigError


def adopt_slurm_environment() -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR, ... for this task of a SLURM step, as torchrun would set them.

    Raises:
        ConfigError: If this process is no task of a SLURM step.
    """
    if "SLURM_PROCID" not in os.environ:
        raise ConfigError(
            "cluster=srun is for a task of a SLURM step, and this process is none; start it with "
            "srun python train.py cluster=srun ..., or use cluster=slurm or cluster=local"
        )
    os.environ.update(slurm_variables(os.environ))


def slurm_variables(env: Mapping[str, str]) -> dict[str, str]:
    """A SLURM task's rank and rendezvous, as the variables that torch and `World` read."""
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
    job, step, attempt = (int(env.get(f"SLURM_{key}", 0)) for key in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks.split("(")[0].split(",")[0],
        "MASTER_ADDR": first_host(env),
        # Another port for every attempt: a rank of the previous one may still be running.
        "MASTER_PORT": str(20000 + (job + 37 * step + 101 * attempt) % 20000),
    }


def first_host(env: Mapping[str, str]) -> str:
    """The node of rank 0: `dgx[03-08]` -> dgx03, or the address of the node that started the step."""
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    prefix, _, rest = nodes.partition("[")
    digits = rest.split("]")[0].split(",")[0].split("-")[0]
    host = prefix.split(",")[0] if "," in prefix or not rest else prefix + digits
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    return host
