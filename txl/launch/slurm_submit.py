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
from pathlib import Path

from txl.config.schema import BenchmarkConfig, RunConfig
from txl.data.corpus import encoded_vocab_size, open_corpus
from txl.data.find_files import find_files, find_vocabulary
from txl.errors import ConfigError
from txl.files import write_json
from txl.launch.choose_checkpoint import check_init_from, check_resume, find_checkpoint, is_finished, newest_checkpoint
from txl.launch.job_state import ENDED, Submitted, state_of
from txl.launch.prepare import check_splits, plan_without_data
from txl.launch.run_folder import copy_code, job_folder, read_config, write_run_folder
from txl.launch.run_lock import in_use
from txl.launch.slurm_script import EARLY_SIGNAL, make_executor, outside_of_any_job, parameters
from txl.plan.run_plan import Plan

ENCODED_HERE = 8 << 20  # bytes of text


class Job:
    """What submitit carries to the nodes: the name of a run folder."""

    def __init__(self, run_dir: str):
        self.run_dir = run_dir

    def __call__(self) -> int:
        if os.environ.pop(EARLY_SIGNAL, None):
            os.kill(os.getpid(), signal.SIGUSR2)
        from txl.launch.slurm_rank import slurm_rank_main

        return slurm_rank_main(read_config(Path(self.run_dir)), submitted=True)

    def checkpoint(self):
        """Called by submitit when a signal announces the end: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# --------------------------------------------------------------------------- submitting


def submit(configs: list[RunConfig], parallel: int | None = None) -> tuple[list[Submitted], list[Submitted]]:
    """Submit each run that has something left to do; as one array (per shape of job) where `parallel` limits it.

    Returns the new jobs, and those that were found in the queue and left alone. Every run is checked before the first
    is submitted, and a refused job leaves no run folder behind.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError("cluster=slurm needs sbatch, which is not here; submit on a login node, or use cluster=local")
    todo, left = [], []
    for config in configs:
        if not isinstance(config, BenchmarkConfig):
            check_data(config)
        plan = plan_without_data(config)
        if parallel is None:
            print(plan, flush=True)
        run_dir = Path(os.path.abspath(job_folder(config)))
        if queued := still_queued(config, run_dir):
            left.append(queued)
        elif has_work(config, run_dir):
            todo.append((config, plan, run_dir))
    fresh = [run_dir for *_, run_dir in todo if not run_dir.exists()]
    jobs = []
    try:
        groups = {}
        for point in todo:
            key = repr(parameters(*point[:2])) if parallel else str(point[2])
            groups.setdefault(key, []).append(point)
        for points in groups.values():
            jobs += submit_together(points, parallel)
    except ConfigError:
        for run_dir in fresh:
            if Submitted.of(run_dir) is None:
                shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return jobs, left


def check_data(config: RunConfig) -> None:
    """Check what can be checked at once on the login node: a small text is encoded, a large one only looked for."""
    files = find_files(config.data)
    find_vocabulary(config.data)
    size = sum(path.stat().st_size for paths in files.values() for path in paths)
    if encoded_vocab_size(config.data) is None and size > ENCODED_HERE:
        return  # rank 0 will encode it, not the login node
    check_splits(config, open_corpus(config.data))


def still_queued(config: RunConfig, run_dir: Path) -> Submitted | None:
    """The run's job, if it waits or runs; ConfigError unless resume=auto."""
    queued = Submitted.of(run_dir)
    state = state_of(queued.job) if queued else None
    if state is None or state in ENDED:
        return None
    if config.resume != "auto":
        raise ConfigError(f"run_dir={run_dir} is in use by job {queued.job} ({state}); scancel {queued.job}, or wait")
    print(f"{run_dir} is {state} as job {queued.job}: left alone")
    return queued


def has_work(config: RunConfig, run_dir: Path) -> bool:
    """Whether a job must be submitted; ConfigError where it must not. Torch is not needed to know."""
    if (run_dir / ".lock").exists() and in_use(run_dir):
        raise ConfigError(f"run_dir={run_dir} is in use by {(run_dir / '.lock').read_text()}; wait for it or stop it")
    if config.preflight or isinstance(config, BenchmarkConfig):
        return True
    if config.resume == "auto":
        found = newest_checkpoint(run_dir)
        if found is not None:
            check_resume(config, found)
            if is_finished(config, run_dir, found):
                print(f"{run_dir} is finished: nothing to do (raise train.max_step to go on)")
                return False
            return True
        check_init_from(config)
    else:
        find_checkpoint(config, run_dir)
    return True


def submit_together(points: list[tuple[RunConfig, Plan, Path]], parallel: int | None) -> list[Submitted]:
    """One job, or one array of them."""
    config, plan, first = points[0]
    is_array = len(points) > 1
    folder = first.parent / "arrays" / time.strftime("%Y%m%d-%H%M%S") if is_array else first
    for point in points:
        write_run_folder(*point, code=False)
        (point[2] / "slurm").mkdir(exist_ok=True)
    copy_code(folder / "code")
    if config.cluster.container:
        Path(config.data.cache).expanduser().mkdir(parents=True, exist_ok=True)  # to be mounted
    executor = make_executor(folder / "slurm", folder / "code", config, plan, parallel)
    try:
        with outside_of_any_job():
            jobs = executor.submit_array([Job(str(run_dir)) for *_, run_dir in points])
    except Exception as error:  # submitit wraps what sbatch said in types of its own
        if is_array:
            shutil.rmtree(folder)
        raise ConfigError(refusal(str(error), config)) from None
    submitted = []
    for (*_, run_dir), job in zip(points, jobs, strict=True):
        one = Submitted(run_dir, job.job_id, folder / "slurm" / f"{job.job_id}_0_log.out")
        record = {"job": one.job, "log": str(one.log), "submitted": time.time()}
        write_json(run_dir / "slurm" / "job.json", record)
        submitted.append(one)
    return submitted


def refusal(message: str, config: RunConfig) -> str:
    said = re.search(r"sbatch: error: (?!Batch job submission failed)(.*)|Batch job submission failed: (.*)", message)
    text = next(filter(None, said.groups())) if said else message.strip().partition("\n")[0]
    chosen = " ".join(
        f"cluster.{key}={value}"
        for key, value in vars(config.cluster).items()
        if key in ("partition", "account", "qos", "constraint") and value
    )
    return f"cluster=slurm {chosen}: SLURM refused the job: {text}; correct cluster.* (sinfo lists the partitions)"
