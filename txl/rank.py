"""What one rank does, whoever started it: our own launcher, torchrun, or SLURM.

Our launcher prepares the run folder and then starts `python -m txl.rank RUN_DIR`. Under torchrun and SLURM nobody was
there before the ranks, so rank 0 prepares for all.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from txl.config import RunConfig
from txl.console import leave, leave_once_noted
from txl.data import open_corpus
from txl.errors import ConfigError
from txl.plan import make_plan
from txl.run_folder import Start, prepare, read_config

BAD_CONFIGURATION = 2  # exit codes
PREEMPTED = 128 + signal.SIGUSR2
TERMINATED = 128 + signal.SIGTERM
LAST_BREATH = 600  # seconds that a terminated rank waits for SLURM to end it


def run_rank(config: RunConfig, start: Start, world, fence: Callable[[], None] | None = None) -> int:
    """Train on this rank; returns its exit code."""
    from txl import fine_tuning
    from txl.distributed import close_process_group, init_process_group
    from txl.hardware import bind_to_memory, keep_freed_memory, pick_device, set_threads
    from txl.trainer import Trainer

    device = pick_device(config.hardware, world.local_rank)
    bind_to_memory(device, world.local_rank, world.local_world_size)
    set_threads(device, world.local_world_size)
    keep_freed_memory(device)
    init_process_group(world, device)  # nothing to do where the ranks have met already
    trainer = Trainer(config, start.plan, open_corpus(config.data), world, device)
    trainer.fence = fence
    if start.checkpoint:
        trainer.restore(Path(start.checkpoint))
    elif config.init_from is not None:
        carried = fine_tuning.begin(trainer.model, trainer.corpus.vocab, config)
        if world.is_main:
            print(carried, flush=True)
    code = trainer.train()
    if world.is_main and trainer.state.step >= config.train.max_step and not config.debug:
        draw(Path(start.plan.run_dir))
    close_process_group()
    return code


def draw(run_dir: Path) -> None:
    """The finished run's loss curve. A picture that cannot be drawn is no reason to call the run failed."""
    from txl.report import plot_loss_curve

    try:
        print(f"Loss curve: {plot_loss_curve(run_dir)}", flush=True)
    except Exception as error:
        print(f"note: no loss curve was drawn: {error}", file=sys.stderr, flush=True)


def started_here(run_dir: Path) -> int:
    """A rank that our launcher started on this machine."""
    for number in (signal.SIGINT, signal.SIGTERM):  # until the trainer listens there is nothing to save
        signal.signal(number, lambda number, frame: leave(128 + number))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed launcher leaves nobody behind
    from txl.distributed import World

    world = World.from_environment()

    def rank() -> int:
        config = read_config(run_dir)
        plan = make_plan(config, len(open_corpus(config.data).vocab))
        checkpoint = json.loads((run_dir / "start.json").read_text())["checkpoint"]
        return run_rank(config, Start(plan, checkpoint), world)

    return guarded(rank, run_dir, world.rank)


def join(config: RunConfig, ours: bool = False, fence: Callable[[], None] | None = None) -> int:
    """A rank that torchrun or SLURM started: rank 0 prepares the run folder for all."""
    from txl.distributed import World, barrier, broadcast_object, init_process_group
    from txl.hardware import pick_device

    world = World.from_environment()
    with contextlib.ExitStack() as stack:
        start = problem = None
        if world.is_main:
            try:
                start, _ = stack.enter_context(prepare(config, ours))
                print(start.plan, flush=True)
            except ConfigError as error:
                problem = str(error)
        device = pick_device(config.hardware, world.local_rank)
        init_process_group(world, device)
        start, problem = broadcast_object((start, problem))
        if problem:
            raise ConfigError(problem)
        if start.finished:
            if world.is_main:
                print(f"{start.plan.run_dir} is finished: nothing to do (raise train.max_step to go on)")
            return 0
        barrier()
        run_dir = Path(start.plan.run_dir)
        return guarded(lambda: run_rank(config, start, world, fence), run_dir, world.rank)


def guarded(rank: Callable[[], int], run_dir: Path, number: int) -> int:
    """A rank that fails says why and ends at once: a graceful end would wait for the others' collectives."""
    error_file = run_dir / "logs" / f"rank_{number}.error"
    error_file.unlink(missing_ok=True)
    try:
        return rank()
    except BaseException as error:
        text = f"error: {error}\n" if isinstance(error, ConfigError) else traceback.format_exc()
        with contextlib.suppress(OSError):  # no such folder (debug=true), or no room: it is printed in any case
            error_file.write_text(text)
        print(text, file=sys.stderr, flush=True)
        os._exit(1)


# --------------------------------------------------------------------------- under SLURM


def started_by_slurm(config: RunConfig, ours: bool = False) -> int:
    """A task of a SLURM step. Ends the process itself unless all is well: what is left of Hydra and submitit above
    would report success."""
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, where it started us
    os.environ.update(slurm_variables(os.environ))
    rank = int(os.environ["RANK"])
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if attempt:
        config.resume, ours = resume_after_requeue(config), True
    try:
        claims = rank == 0 and not config.debug
        fence = Attempt(Path(make_plan(config).run_dir), attempt) if claims else None
        code = join(config, ours, fence)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(BAD_CONFIGURATION)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if code == PREEMPTED and callable(requeue):
        if rank == 0:
            requeue(signal.SIGUSR2, None)  # scontrol requeue: the same job, the same folder; does not return
        leave(0)
    if code == TERMINATED:
        wait_for_the_end(rank)
    if code:
        leave(code)
    leave_once_noted()
    return 0


def resume_after_requeue(config: RunConfig) -> str:
    """The run's own newest checkpoint; before there is one, what the first attempt began from."""
    from txl.run_folder import newest_checkpoint

    if config.resume not in (None, "auto") and newest_checkpoint(Path(make_plan(config).run_dir)) is None:
        return config.resume
    return "auto"


def wait_for_the_end(rank: int) -> None:
    """After SIGTERM: a cancelled job ends now; a preempted one that ended by itself would not be requeued."""
    if rank == 0:
        show = ["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            shown = subprocess.run(show, capture_output=True, text=True, timeout=20).stdout
            if "JobState=CANCELLED" in shown:
                leave(TERMINATED)
    print("terminated by SLURM: saved, waiting for its next word", flush=True)
    time.sleep(LAST_BREATH)


def slurm_variables(env) -> dict[str, str]:
    """A SLURM task's rank and meeting point, in the words that torch and `World` know."""
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
    job, step, attempt = (int(env.get(f"SLURM_{key}", 0)) for key in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks.split("(")[0].split(",")[0],
        "MASTER_ADDR": first_host(env),
        # Another port for every attempt: a rank of the one before may still linger.
        "MASTER_PORT": str(20000 + (job + 37 * step + 101 * attempt) % 20000),
    }


def first_host(env) -> str:
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


class Attempt:
    """Rank 0's claim on the run folder. A lost node may go on with an attempt that SLURM has restarted elsewhere:
    called before each checkpoint, this ends the process that is no longer the newest."""

    def __init__(self, run_dir: Path, number: int):
        self.file = run_dir / "slurm" / "attempts.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.mine = {
            "job": os.environ["SLURM_JOB_ID"],
            "attempt": number,
            "nodes": os.environ.get("SLURM_JOB_NODELIST"),
            "began": round(time.time(), 3),
        }
        with open(self.file, "a") as file:
            file.write(json.dumps(self.mine) + "\n")

    def __call__(self) -> None:
        if json.loads(self.file.read_text().splitlines()[-1]) != self.mine:
            print("another attempt of this job has taken over: this one ends here", file=sys.stderr, flush=True)
            os._exit(1)


if __name__ == "__main__":
    leave(started_here(Path(sys.argv[1])))
