"""What sbatch and srun are told."""

import contextlib
import os
import shlex
import sys
from pathlib import Path

from txl.config.schema import RunConfig
from txl.data.find_files import find_files, find_vocabulary
from txl.errors import ConfigError
from txl.plan.run_plan import Plan

OUR_OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


SITE_WIDE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


# A task's first words. A signal that comes before submitit listens would kill the job. While Python starts it is
# ignored (a time limit is never that near, and who preempts will ask again); then it is kept for `Job`.
DEAF = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh"]


START = """import os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: os.environ.update({early}="1"))
sys.path[0] = {code!r}
from submitit.core.submission import submitit_main
submitit_main()"""


EARLY_SIGNAL = "TXL_EARLY_SIGNAL"


def make_executor(folder: Path, code: Path, config: RunConfig, plan: Plan, parallel: int | None):
    """submitit's SLURM executor, whose tasks import the copied code and nothing from the working directory."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # the script can be written anywhere

        @property
        def _submitit_command_str(self) -> str:
            start = START.format(code=str(code), early=EARLY_SIGNAL)
            task = [*DEAF, config.cluster.python or sys.executable, "-u", "-c", start]
            return shlex.join([*task, str(self.folder)])

    executor = Executor(folder, max_num_timeout=config.cluster.max_timeouts)
    executor.update_parameters(**parameters(config, plan), **({"array_parallelism": parallel} if parallel else {}))
    return executor


def parameters(config: RunConfig, plan: Plan) -> dict:
    """What sbatch and srun are told."""
    cluster = config.cluster
    optional = {
        key: getattr(cluster, key)
        for key in ("partition", "account", "qos", "constraint", "cpus_per_task")
        if getattr(cluster, key) is not None
    }
    if cluster.mem_gb:
        optional["mem"] = f"{cluster.mem_gb}GB"
    further = dict(sbatch_flag(flag) for flag in cluster.sbatch)
    if config.hardware.gpus and "gres" not in further:
        optional["gpus_per_node"] = plan.gpus_per_node
    # One dead rank ends the job; a requeued attempt goes on in the same logs.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if cluster.cpus_per_task:
        srun.append(f"--cpus-per-task={cluster.cpus_per_task}")  # which srun no longer takes from sbatch
    if cluster.container:
        mounts = [f"{folder}:{folder}" for folder in outermost(folders_of(config, plan))]
        mounts = ",".join([*mounts, *cluster.container_mounts])
        srun += [f"--container-image={cluster.container}", f"--container-mounts={mounts}"]
        srun.append(f"--container-workdir={os.getcwd()}")
    return optional | {
        "job_name": config.name,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.gpus_per_node,
        "time": cluster.minutes,
        "signal_delay_s": cluster.signal_delay,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own breaks some sites
        "setup": [*cluster.setup],
        "srun_args": [*srun, *cluster.srun],
        "additional_parameters": {"requeue": True} | further,
    }


def folders_of(config: RunConfig, plan: Plan) -> set[Path]:
    """What a job reads and writes: a container must have it."""
    paths = [Path.cwd(), Path(plan.run_dir).parent, Path(config.data.cache)]
    with contextlib.suppress(ConfigError):  # for dry_run=true, which needs no data
        named = find_files(config.data) | find_vocabulary(config.data)
        paths += [file.parent for files in named.values() for file in files]
    paths += [Path(folder) for folder in (config.resume, config.init_from) if folder not in (None, "auto")]
    return {Path(os.path.abspath(path.expanduser())) for path in paths}


def outermost(folders: set[Path]) -> list[Path]:
    """Without those that lie in another one."""
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def sbatch_flag(flag: str) -> tuple[str, str | bool]:
    """`--gres=gpu:16` -> ("gres", "gpu:16"); `--exclusive` -> ("exclusive", True)"""
    name, has_value, value = flag.removeprefix("--").partition("=")
    return name, value if has_value else True


def sbatch_script(config: RunConfig, plan: Plan) -> str:
    """For dry_run=true: what would be submitted."""
    run_dir = Path(os.path.abspath(plan.run_dir))
    executor = make_executor(run_dir / "slurm", run_dir / "code", config, plan, None)
    return executor._make_submission_file_text(executor._submitit_command_str, "0")


@contextlib.contextmanager
def outside_of_any_job():
    """Submitting from inside an allocation must not hand its shape and CPU binding on to the new job."""
    before = dict(os.environ)
    for key in list(os.environ):
        inherited = key.startswith(("SLURM_", "SBATCH_")) and key not in SITE_WIDE and "SLURM_JOB_ID" in before
        if inherited or key in OUR_OWN or key.startswith("SUBMITIT_"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
