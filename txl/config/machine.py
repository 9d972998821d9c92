"""The options of `hardware=` and `cluster=`: where ranks run."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from txl.config.bounds import above_zero, zero_or_more


@dataclass
class HardwareConfig:
    """The machine, or one node of several equal ones."""

    name: str = MISSING  # the machine
    gpus: int | None = zero_or_more(most=1024)  # per node; 0: CPU processes; null: as many as the machine has
    gpu: str | None = MISSING  # name of the accelerator, for tables; null: ask the machine
    memory_gb: float | None = above_zero()  # of one accelerator


@dataclass
class ClusterConfig:
    """Who starts the ranks. All options but the name belong to cluster=slurm."""

    name: str = MISSING  # local; slurm: submit a job; srun: this process is a rank of the step that srun started
    partition: str | None = None  # sbatch --partition
    account: str | None = None  # sbatch --account
    qos: str | None = None  # sbatch --qos
    constraint: str | None = None  # sbatch --constraint
    minutes: int | None = above_zero(None)  # time limit of one attempt; a run continues in the next attempt
    cpus_per_task: int | None = above_zero(None)  # cores of each rank
    mem_gb: int | None = above_zero(None)  # per node
    signal_delay: int | None = above_zero(None)  # seconds before the time limit at which ranks save and requeue
    max_timeouts: int | None = above_zero(None)  # requeues after a time limit
    sbatch: list[str] = field(default_factory=list)  # further flags: ["--exclusive", "--gres=gpu:16"]
    srun: list[str] = field(default_factory=list)  # further flags: ["--cpu-bind=cores"]
    setup: list[str] = field(default_factory=list)  # shell lines before srun, such as "module load cuda"
    container: str | None = None  # image, for pyxis
    container_mounts: list[str] = field(default_factory=list)  # from:to, besides the working directory
    python: str | None = None  # Python on the nodes; null: the same path as the Python that submits
    hang_minutes: float = above_zero(5.0)  # a run of several processes ends after this long without any progress
    wait: bool = False  # follow rank 0's log and exit with the job's status
