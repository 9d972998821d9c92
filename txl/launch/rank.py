"""What one rank does, whoever started it: our own launcher, torchrun, or SLURM.

Our launcher prepares the run folder and then starts `python -m txl.rank RUN_DIR`. Under torchrun and SLURM nobody was
there before the ranks, so rank 0 prepares for all.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from txl.config.schema import RunConfig
from txl.data.corpus import open_corpus
from txl.errors import ConfigError
from txl.launch.prepare import Start, prepare
from txl.launch.run_folder import read_config
from txl.plan.run_plan import make_plan
from txl.system.process_exit import leave

BAD_CONFIGURATION = 2  # exit codes


def run_rank(config: RunConfig, start: Start, world, fence: Callable[[], None] | None = None) -> int:
    """Train on this rank; returns its exit code."""
    from txl.checkpoint import init_from as fine_tuning
    from txl.system.devices import bind_to_memory, keep_freed_memory, pick_device, set_threads
    from txl.system.distributed import close_process_group, init_process_group
    from txl.train.trainer import Trainer

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
    from txl.report.loss_curve import plot_loss_curve

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
    from txl.system.world import World

    world = World.from_environment()

    def rank() -> int:
        config = read_config(run_dir)
        plan = make_plan(config, len(open_corpus(config.data).vocab))
        checkpoint = json.loads((run_dir / "start.json").read_text())["checkpoint"]
        return run_rank(config, Start(plan, checkpoint), world)

    return guarded(rank, run_dir, world.rank)


def join(config: RunConfig, ours: bool = False, fence: Callable[[], None] | None = None) -> int:
    """A rank that torchrun or SLURM started: rank 0 prepares the run folder for all."""
    from txl.system.devices import pick_device
    from txl.system.distributed import barrier, broadcast_object, init_process_group
    from txl.system.world import World

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


if __name__ == "__main__":
    leave(started_here(Path(sys.argv[1])))
