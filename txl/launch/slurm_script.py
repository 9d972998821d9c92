"""The batch script of a job: what sbatch and srun are told, and how a task starts."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from txl.config.schema import EvaluateConfig, RunConfig
from txl.data.token_source import open_source
from txl.errors import ConfigError
from txl.plan.run_plan import Plan

if TYPE_CHECKING:
    import submitit

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

SITE_WIDE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")

# How a task starts. USR2 before submitit handles it would kill the job. While Python starts, the signal is ignored: a
# time limit is never that near, and a preemption is announced again. After that it is noted for `Job`.
IGNORE_USR2 = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh"]
START_TASK = """import os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: os.environ.update({early}="1"))
sys.path[0] = {code!r}
from submitit.core.submission import submitit_main
submitit_main()"""
EARLY_SIGNAL = "TXL_EARLY_SIGNAL"


class JobShape(NamedTuple):
    """What a job asks SLURM for, beside `cluster.*`."""

    nodes: int
    tasks_per_node: int
    folders: frozenset[Path]  # that it reads or writes; a container mounts them


def shape_of_run(config: RunConfig, plan: Plan) -> JobShape:
    """The shape of a training's, a benchmark's or a preflight's job."""
    return JobShape(plan.nodes, plan.gpus_per_node, folders_used(config, plan))


def make_executor(
    folder: Path, code: Path, config: RunConfig | EvaluateConfig, shape: JobShape, parallel: int | None
) -> submitit.SlurmExecutor:
    """submitit's SLURM executor, with tasks that import the copied code and nothing from the working directory.

    Args:
        folder: For submitit's files and the logs.
        code: The copy of the code.
        config: The run; `cluster` says what to ask SLURM for.
        shape: Nodes, tasks and folders of the job.
        parallel: Jobs of an array that run at once; None: no array.

    Returns:
        The executor; its `submit_array` submits.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # the script can also be written on a machine without SLURM

        @property
        def _submitit_command_str(self) -> str:
            start = START_TASK.format(code=str(code), early=EARLY_SIGNAL)
            task = [*IGNORE_USR2, config.cluster.python or sys.executable, "-u", "-c", start]
            return shlex.join([*task, str(self.folder)])

    executor = Executor(folder, max_num_timeout=config.cluster.max_timeouts or 0)
    executor.update_parameters(**job_parameters(config, shape), **({"array_parallelism": parallel} if parallel else {}))
    return executor


def job_parameters(config: RunConfig | EvaluateConfig, shape: JobShape) -> dict[str, Any]:
    """What sbatch and srun are told, as submitit's parameters."""
    cluster = config.cluster
    optional: dict[str, Any] = {
        key: getattr(cluster, key)
        for key in ("partition", "account", "qos", "constraint", "cpus_per_task")
        if getattr(cluster, key) is not None
    }
    if cluster.mem_gb:
        optional["mem"] = f"{cluster.mem_gb}GB"
    further = dict(sbatch_flag(flag) for flag in cluster.sbatch)
    if config.hardware.gpus and "gres" not in further:
        optional["gpus_per_node"] = shape.tasks_per_node
    # One dead rank ends the job; a requeued attempt goes on in the same logs.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if cluster.cpus_per_task:
        srun.append(f"--cpus-per-task={cluster.cpus_per_task}")  # which srun no longer takes from sbatch
    if cluster.container:
        own = [f"{folder}:{folder}" for folder in outermost(shape.folders)]
        mounts = ",".join([*own, *cluster.container_mounts])
        srun += [f"--container-image={cluster.container}", f"--container-mounts={mounts}"]
        srun.append(f"--container-workdir={os.getcwd()}")
    return optional | {
        "job_name": config.name,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "time": cluster.minutes,
        "signal_delay_s": cluster.signal_delay,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own breaks some sites
        "setup": [*cluster.setup],
        "srun_args": [*srun, *cluster.srun],
        "additional_parameters": {"requeue": True} | further,
    }


def folders_used(config: RunConfig, plan: Plan) -> frozenset[Path]:
    """The folders that a job reads or writes, which a container must mount."""
    paths = [Path.cwd(), Path(plan.run_dir).parent, Path(config.data.cache)]
    with contextlib.suppress(ConfigError):  # for dry_run=true, which needs no data
        paths += [file.parent for file in open_source(config.data).files]
    paths += [Path(folder) for folder in (config.resume, config.init_from) if folder not in (None, "auto")]
    return frozenset(Path(os.path.abspath(path.expanduser())) for path in paths)


def outermost(folders: frozenset[Path]) -> list[Path]:
    """The folders without those that lie inside another one."""
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def sbatch_flag(flag: str) -> tuple[str, str | bool]:
    """`--gres=gpu:16` -> ("gres", "gpu:16"); `--exclusive` -> ("exclusive", True)"""
    name, has_value, value = flag.removeprefix("--").partition("=")
    return name, value if has_value else True


def sbatch_script(config: RunConfig, plan: Plan) -> str:
    """For dry_run=true: what would be submitted."""
    run_dir = Path(os.path.abspath(plan.run_dir))
    executor = make_executor(run_dir / "slurm", run_dir / "code", config, shape_of_run(config, plan), None)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "0")
    return text


@contextlib.contextmanager
def without_job_environment() -> Iterator[None]:
    """Hide the variables of the job that this process runs in: a job submitted here must not inherit its shape."""
    before = dict(os.environ)
    for key in list(os.environ):
        inherited = key.startswith(("SLURM_", "SBATCH_")) and key not in SITE_WIDE and "SLURM_JOB_ID" in before
        if inherited or key in RANK_VARIABLES or key.startswith("SUBMITIT_"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
