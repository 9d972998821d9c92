"""From a validated configuration to running ranks: here, or as a SLURM job.

A process that finds RANK in its environment (torchrun), or that a SLURM step started for us, *is* a rank. Otherwise
cluster=slurm submits; cluster=local runs a single rank right here, or starts one process per device.

    python -m txl.launch status RUN_DIR     what became of a run, or of all runs below a folder
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from txl.choices import Task
from txl.composition import to_dict
from txl.config import EvaluateConfig, RunConfig
from txl.console import log_to_console
from txl.hardware import detect
from txl.run_folder import PROJECT, Start, first_to_fail, prepare, write_run_folder

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
STOPPED = (0, 3, 130, 140, 143)  # a missed target; a signal, after saving: all ranks end like this together


def launch(config: RunConfig, submitted: list) -> int:
    """Run a training to its end, or submit it; returns the exit code. Jobs to wait for are added to `submitted`."""
    log_to_console()
    if config.preflight and ("RANK" in os.environ or is_slurm_task(config)):
        from txl.plan import make_plan
        from txl.preflight import preflight

        return preflight(config, Path(make_plan(config).run_dir + "-preflight"))
    if "RANK" in os.environ:
        from txl.rank import join

        return join(config)
    if is_slurm_task(config):
        from txl.rank import started_by_slurm

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
        from txl.distributed import World
        from txl.rank import run_rank

        return run_rank(config, start, World())


def is_slurm_task(config: RunConfig) -> bool:
    """Said so (cluster=srun), or started by submitit. A bare SLURM step may be somebody's interactive shell."""
    return config.cluster.name == "srun" or {"SUBMITIT_EXECUTOR", "SLURM_PROCID"} <= set(os.environ)


# --------------------------------------------------------------------------- SLURM


def submit_one(config: RunConfig, submitted: list) -> int:
    from txl.slurm import submit

    jobs, left = submit([config])
    announce(jobs)
    submitted += jobs + left if config.cluster.wait else []
    return 0


def submit_array(configs: list[RunConfig], parallel: int) -> int:
    """The points of a sweep as one throttled job array; returns the exit code."""
    from txl.jobs import wait
    from txl.slurm import submit

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
        (folder / "start.json").write_text(json.dumps({"checkpoint": start.checkpoint}) + "\n")
        return run_local_ranks("txl.rank", [str(folder)], start.plan.world_size, folder, lock)


def check_here(config: RunConfig) -> int:
    """preflight=true on this machine, in a folder of its own."""
    from txl.plan import make_plan

    plan = make_plan(config)
    print(plan, flush=True)
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        write_run_folder(config, plan, Path(folder), code=False)
        return run_local_ranks("txl.preflight", [folder], plan.world_size, Path(folder))


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate or generate here, with one process per device; returns the exit code."""
    from txl.distributed import World
    from txl.evaluation_rank import run_rank

    devices = detect()[1] if config.hardware.gpus is None else config.hardware.gpus
    size = config.gpus or devices or 1
    if "RANK" in os.environ or size == 1 or config.task is Task.generate:
        return run_rank(config, World.from_environment())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "evaluate.json").write_text(json.dumps(to_dict(config)))
        return run_local_ranks("txl.evaluation_rank", [folder], size, Path(folder))


def run_local_ranks(module: str, arguments: list[str], size: int, run_dir: Path, lock: IO | None = None) -> int:
    """Start `python -m MODULE ARGUMENTS` once per rank, pass signals on, and end them all when one fails."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # No word from each rank about find_unused_parameters (trainer.py); errors are said all the same.
    shared["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank in range(size):
        (run_dir / "logs" / f"rank_{rank}.error").unlink(missing_ok=True)
        # Rank 0 speaks for all; what the others print goes to their logs.
        output = None if rank == 0 else open(run_dir / "logs" / f"rank_{rank}.log", "a")  # noqa: SIM115
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()] if lock else [],
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
            )
        )

    asked: list[int] = []

    def forward(number, frame):
        again = number == signal.SIGINT in asked  # a second Ctrl-C: now
        asked.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return watch(ranks, run_dir, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(ranks: list[subprocess.Popen], run_dir: Path, asked: list[int]) -> int:
    """Wait for all ranks; a failed one takes the others with it, and its traceback is the last thing printed.

    `asked`: signals that were passed on. They may meet some ranks before they listen; the others fail then.
    """
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code is not None and code not in STOPPED]
        if failed:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
            if asked and (asked.count(signal.SIGINT) > 1 or {128 + asked[0], -asked[0]} & set(codes)):
                print("stopped before it could save: resume=auto goes on from the checkpoint before", file=sys.stderr)
                return 128 + asked[0]
            killed = [rank for rank in failed if codes[rank] < 0]  # without a word; what the others say follows from it
            rank = killed[0] if killed else first_to_fail(run_dir)
            rank = failed[0] if rank is None else rank
            error = run_dir / "logs" / f"rank_{rank}.error"
            detail = error.read_text() if error.exists() else f"it was killed (exit code {codes[rank]})"
            log = run_dir / "logs" / f"rank_{rank}.log"
            print(f"rank {rank} failed, the others were stopped; {log}\n{detail}", file=sys.stderr)
            return 1
        if None not in codes:
            return max(codes)
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    from txl.status import main

    sys.exit(main(sys.argv[1:]))
