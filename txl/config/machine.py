"""The options of `hardware=` and `cluster=`: where ranks run."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class HardwareConfig:
    name: str = MISSING
    gpus: int | None = MISSING  # per node; 0: CPU processes; null: as many as the machine has
    gpu: str | None = MISSING  # name of the accelerator, for tables; null: what the machine has
    memory_gb: float | None = MISSING  # of one accelerator


@dataclass
class ClusterConfig:
    """Where ranks run. All but the name is for cluster=slurm."""

    name: str = MISSING  # local; slurm: submit a job; srun: be a rank of the step that srun started
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int | None = None  # time limit of one attempt; a run goes on over as many as it takes
    cpus_per_task: int | None = None
    mem_gb: int | None = None  # per node
    signal_delay: int | None = None  # seconds before the time limit at which ranks save and requeue
    max_timeouts: int | None = None  # requeues after a time limit
    sbatch: list[str] = field(default_factory=list)  # further flags: ["--exclusive", "--gres=gpu:16"]
    srun: list[str] = field(default_factory=list)  # further flags: ["--cpu-bind=cores"]
    setup: list[str] = field(default_factory=list)  # shell lines before srun, such as "module load cuda"
    container: str | None = None  # image, for pyxis
    container_mounts: list[str] = field(default_factory=list)  # from:to, besides the working directory
    python: str | None = None  # on the nodes; null: the one that submits
    wait: bool = False  # follow rank 0's log and end with the job's status
