"""Submitting to SLURM through submitit.

A job is one run folder: what its ranks run is the configuration that was validated and the code that was copied there.

    RUN_DIR/slurm/job.json         {"job": "17", "log": ...}; an array's element: "17_2"
    RUN_DIR/slurm/attempts.jsonl   one line per start of the job: a requeued one has several
    RUN_DIR/slurm/17_3_log.out     what rank 3 printed, all attempts in one
"""

import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from txl.config.compose import to_dict
from txl.config.output_files import check_output_folder
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, Task
from txl.data.corpus import encoded_vocab_size, open_corpus
from txl.data.token_source import open_source
from txl.errors import ConfigError
from txl.files import sha256_of_json, write_json
from txl.launch.choose_checkpoint import (
    check_init_from,
    check_resume,
    find_checkpoint,
    finished_message,
    is_finished,
    newest_checkpoint,
)
from txl.launch.prepare import check_splits
from txl.launch.run_folder import copy_code, job_folder, read_config, write_config, write_run_folder
from txl.launch.slurm_script import (
    EARLY_SIGNAL,
    JobShape,
    job_parameters,
    make_executor,
    shape_of_run,
    without_job_environment,
)
from txl.launch.torch_build import check_torch_build
from txl.plan.batch_split import processes
from txl.plan.run_plan import Plan, plan_without_data
from txl.system.run_lock import is_locked, lock_owner
from txl.system.slurm_jobs import ENDED, SubmittedJob, job_state

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

ENCODED_HERE = 8 << 20  # bytes of text that the login node encodes at most


class PlannedJob(NamedTuple):
    """A run or an evaluation that is to be submitted."""

    config: RunConfig | EvaluateConfig
    plan: Plan | None  # None: an evaluation
    shape: JobShape
    run_dir: Path


class Job:
    """What submitit sends to the nodes: the name of a run folder. Called there, it is one rank of the run."""

    def __init__(self, run_dir: str):
        self.run_dir = run_dir

    def __call__(self) -> int:
        if os.environ.pop(EARLY_SIGNAL, None):
            os.kill(os.getpid(), signal.SIGUSR2)
        from txl.launch.slurm_rank import slurm_rank_main

        return slurm_rank_main(read_config(Path(self.run_dir)), submitted=True)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit requeues when a signal announces the end of the job: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# --------------------------------------------------------------------------- submitting


def submit(configs: list[RunConfig], parallel: int | None = None) -> tuple[list[SubmittedJob], list[SubmittedJob]]:
    """Submit each run that is not finished. Every run is checked before the first job is submitted.

    Args:
        configs: Trainings, benchmarks or preflights with cluster=slurm.
        parallel: Submit them as job arrays of which this many jobs run at once; jobs of different shapes (nodes, GPUs,
            time) go to different arrays. None: one job each.

    Returns:
        The new jobs, and the jobs that were in the queue already.

    Raises:
        ConfigError: If a run may not start, or SLURM refuses a job. A refused job leaves no run folder behind.
    """
    check_sbatch()
    todo: list[PlannedJob] = []
    queued_already: list[SubmittedJob] = []
    for config in configs:
        check_torch_build(config)
        if not isinstance(config, BenchmarkConfig):
            check_data_here(config)
        plan = plan_without_data(config)
        if parallel is None:
            print(plan, flush=True)
        run_dir = Path(os.path.abspath(job_folder(config)))
        check_output_folder("run_dir", run_dir)
        if queued := still_queued(config, run_dir):
            queued_already.append(queued)
        elif has_work(config, run_dir):
            todo.append(PlannedJob(config, plan, shape_of_run(config, plan), run_dir))
    fresh = [job.run_dir for job in todo if not job.run_dir.exists()]
    jobs: list[SubmittedJob] = []
    try:
        groups: dict[str, list[PlannedJob]] = {}
        for job in todo:
            key = repr(job_parameters(job.config, job.shape)) if parallel else str(job.run_dir)
            groups.setdefault(key, []).append(job)
        for group in groups.values():
            jobs += submit_together(group, parallel)
    except ConfigError:
        for run_dir in fresh:
            if SubmittedJob.of(run_dir) is None:
                shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return jobs, queued_already


def submit_evaluation(config: EvaluateConfig) -> SubmittedJob:
    """Submit an evaluation or a generation; its result is also written to result.json in the job's folder.

    Raises:
        ConfigError: If there is no such checkpoint, the folder is in use by another job, or SLURM refuses the job.
    """
    from txl.checkpoint.resolve import resolve_checkpoint

    check_sbatch()
    check_torch_build(config)
    checkpoint = Path(config.checkpoint)
    if config.config_file is None:
        checkpoint = resolve_checkpoint(config.checkpoint)
    run_dir = Path(os.path.abspath(config.run_dir or evaluation_folder(config, checkpoint)))
    check_output_folder("run_dir", run_dir)
    queued = SubmittedJob.of(run_dir)
    state = job_state(queued.job) if queued else None
    if queued is not None and state is not None and state not in ENDED:
        raise ConfigError(f"run_dir={run_dir} is in use by job {queued.job} ({state}); scancel {queued.job}, or wait")
    fresh = not run_dir.exists()
    nodes, per_node = processes(config)
    if config.task is not Task.evaluate:
        nodes = per_node = 1
    folders = frozenset({Path.cwd(), checkpoint.absolute(), run_dir.parent})
    config = replace(config, run_dir=str(run_dir), json=config.json or str(run_dir / "result.json"))
    try:
        return submit_together([PlannedJob(config, None, JobShape(nodes, per_node, folders), run_dir)], None)[0]
    except ConfigError:
        if fresh:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def evaluation_folder(config: EvaluateConfig, checkpoint: Path) -> Path:
    """evaluations/<hash of the options> in the checkpoint's run folder; the same command has the same folder."""
    values = to_dict(config)
    for key in ("cluster", "hardware", "nodes", "gpus", "name", "run_dir", "json", "log"):
        del values[key]
    run = next((folder.parent for folder in checkpoint.parents if folder.name == "checkpoints"), checkpoint.parent)
    return run / "evaluations" / sha256_of_json(values)[:8]


def check_sbatch() -> None:
    """Raises ConfigError if this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise ConfigError("cluster=slurm needs sbatch, which is not here; submit on a login node, or use cluster=local")


def check_data_here(config: RunConfig) -> None:
    """Check what can be checked at once on the login node: a small text is encoded, a large one only looked for."""
    size = sum(path.stat().st_size for path in open_source(config.data).files)
    if encoded_vocab_size(config.data) is None and size > ENCODED_HERE:
        return  # rank 0 will encode it, not the login node
    check_splits(config, open_corpus(config.data))


def still_queued(config: RunConfig, run_dir: Path) -> SubmittedJob | None:
    """The run's job if it waits or runs already.

    Raises:
        ConfigError: If it does, and resume=auto does not allow it.
    """
    queued = SubmittedJob.of(run_dir)
    state = job_state(queued.job) if queued else None
    if queued is None or state is None or state in ENDED:
        return None
    if config.resume != "auto":
        raise ConfigError(f"run_dir={run_dir} is in use by job {queued.job} ({state}); scancel {queued.job}, or wait")
    print(f"{run_dir} is {state} as job {queued.job}: left alone")
    return queued


def has_work(config: RunConfig, run_dir: Path) -> bool:
    """Whether the run is not finished yet. Needs no torch.

    Raises:
        ConfigError: If the run folder is in use, or the run may not continue there.
    """
    if is_locked(run_dir):
        raise ConfigError(f"run_dir={run_dir} is in use by {lock_owner(run_dir)}; wait for it or stop it")
    if config.preflight or isinstance(config, BenchmarkConfig):
        return True
    if config.resume == "auto":
        found = newest_checkpoint(run_dir)
        if found is not None:
            check_resume(config, found)
            if is_finished(config, run_dir, found):
                print(finished_message(config, run_dir))
                return False
            return True
        check_init_from(config)
    else:
        find_checkpoint(config, run_dir)
    return True


def submit_together(group: list[PlannedJob], parallel: int | None) -> list[SubmittedJob]:
    """Submit one job, or several of the same shape as one array."""
    config, first = group[0].config, group[0].run_dir
    is_array = len(group) > 1
    folder = first.parent / "arrays" / time.strftime("%Y%m%d-%H%M%S") if is_array else first
    for job in group:
        if isinstance(job.config, RunConfig) and job.plan is not None:
            write_run_folder(job.config, job.plan, job.run_dir, code=False)
        else:
            write_config(job.config, job.run_dir)
        (job.run_dir / "slurm").mkdir(exist_ok=True)
        for error in job.run_dir.glob("logs/rank_*.error"):  # of an earlier job
            error.unlink(missing_ok=True)
    copy_code(folder / "code")
    if config.cluster.container and isinstance(config, RunConfig):
        Path(config.data.cache).expanduser().mkdir(parents=True, exist_ok=True)  # to be mounted
    executor = make_executor(folder / "slurm", folder / "code", config, group[0].shape, parallel)
    try:
        with without_job_environment():
            jobs = executor.submit_array([Job(str(job.run_dir)) for job in group])
    except Exception as error:  # submitit wraps sbatch's message in exceptions of its own
        if is_array:
            shutil.rmtree(folder)
        raise ConfigError(refusal_message(str(error), config)) from None
    submitted = []
    for job, sent in zip(group, jobs, strict=True):
        one = SubmittedJob(job.run_dir, sent.job_id, folder / "slurm" / f"{sent.job_id}_0_log.out")
        record = {"job": one.job, "log": str(one.log), "submitted": time.time()}
        write_json(job.run_dir / "slurm" / "job.json", record)
        submitted.append(one)
    return submitted


def refusal_message(message: str, config: RunConfig | EvaluateConfig) -> str:
    """What the user reads when sbatch refused a job: the chosen partition and account, and sbatch's reason."""
    said = re.search(r"sbatch: error: (?!Batch job submission failed)(.*)|Batch job submission failed: (.*)", message)
    text = next(filter(None, said.groups())) if said else message.strip().partition("\n")[0]
    chosen = " ".join(
        f"cluster.{key}={value}"
        for key, value in vars(config.cluster).items()
        if key in ("partition", "account", "qos", "constraint") and value
    )
    return f"cluster=slurm {chosen}: SLURM refused the job: {text}; correct cluster.* (sinfo lists the partitions)"
