"""From a validated configuration to running ranks: here, or as a SLURM job.

A process that finds RANK in its environment (torchrun), or that a SLURM step started for us, *is* a rank. Otherwise
cluster=slurm submits; cluster=local runs a single rank right here, or starts one process per device.

    python -m txl.launch status RUN_DIR     what became of a run, or of all runs below a folder
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from txl.config.compose import to_dict
from txl.config.schema import EvaluateConfig, RunConfig, Task
from txl.files import write_json
from txl.launch.local_processes import run_local_ranks
from txl.launch.prepare import Start, prepare
from txl.launch.run_folder import write_run_folder
from txl.system.console import log_to_console
from txl.system.hardware import detect


def launch(config: RunConfig, submitted: list) -> int:
    """Run a training to its end, or submit it; returns the exit code. Jobs to wait for are added to `submitted`."""
    log_to_console()
    if config.preflight and ("RANK" in os.environ or is_slurm_task(config)):
        from txl.launch.preflight import preflight
        from txl.plan.run_plan import make_plan

        return preflight(config, Path(make_plan(config).run_dir + "-preflight"))
    if "RANK" in os.environ:
        from txl.launch.rank import join

        return join(config)
    if is_slurm_task(config):
        from txl.launch.slurm_rank import started_by_slurm

        return started_by_slurm(config)
    if config.cluster.name == "slurm":
        return submit_one(config, submitted)
    if config.preflight:
        return check_here(config)
    with prepare(config) as (start, lock):
        if start.finished:
            print(f"{start.plan.run_dir} is finished: nothing to do (raise train.max_step to go on)")
            return 0
        print(start.plan)
        if start.plan.world_size > 1:
            return run_training_ranks(config, start, lock)
        from txl.launch.rank import run_rank
        from txl.system.world import World

        return run_rank(config, start, World())


def is_slurm_task(config: RunConfig) -> bool:
    """Said so (cluster=srun), or started by submitit. A bare SLURM step may be somebody's interactive shell."""
    return config.cluster.name == "srun" or {"SUBMITIT_EXECUTOR", "SLURM_PROCID"} <= set(os.environ)


# --------------------------------------------------------------------------- SLURM


def submit_one(config: RunConfig, submitted: list) -> int:
    from txl.launch.slurm_submit import submit

    jobs, left = submit([config])
    announce(jobs)
    submitted += jobs + left if config.cluster.wait else []
    return 0


def submit_array(configs: list[RunConfig], parallel: int) -> int:
    """The points of a sweep as one throttled job array; returns the exit code."""
    from txl.launch.slurm_submit import submit
    from txl.launch.wait_for_jobs import wait

    jobs, left = submit(configs, parallel)
    announce(jobs)
    return wait(jobs + left) if jobs + left and any(config.cluster.wait for config in configs) else 0


def announce(jobs: list) -> None:
    for one in jobs:
        print(f"job {one.job} submitted: {one.run_dir}\n  follow: tail -F {one.log}", flush=True)
    if jobs:
        folder = os.path.commonpath([one.run_dir for one in jobs])
        print(f"  status: {Path(sys.executable).name} -m txl.launch status {folder}", flush=True)


# --------------------------------------------------------------------------- this machine


def run_training_ranks(config: RunConfig, start: Start, lock: IO | None) -> int:
    """Ranks read their configuration from the run folder; with debug=true from one that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(start.plan.run_dir)
        if config.debug:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="debug-")))
            write_run_folder(config, start.plan, folder, code=False)
        write_json(folder / "start.json", {"checkpoint": start.checkpoint})
        return run_local_ranks("txl.launch.rank", [str(folder)], start.plan.world_size, folder, lock)


def check_here(config: RunConfig) -> int:
    """preflight=true on this machine, in a folder of its own."""
    from txl.plan.run_plan import make_plan

    plan = make_plan(config)
    print(plan, flush=True)
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        write_run_folder(config, plan, Path(folder), code=False)
        return run_local_ranks("txl.launch.preflight", [folder], plan.world_size, Path(folder))


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate or generate here, with one process per device; returns the exit code."""
    from txl.launch.evaluation_rank import run_rank
    from txl.system.world import World

    devices = detect()[1] if config.hardware.gpus is None else config.hardware.gpus
    size = config.gpus or devices or 1
    if "RANK" in os.environ or size == 1 or config.task is Task.generate:
        return run_rank(config, World.from_environment())
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "evaluate.json", to_dict(config))
        return run_local_ranks("txl.launch.evaluation_rank", [folder], size, Path(folder))
