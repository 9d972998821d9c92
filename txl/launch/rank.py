"""What one rank does, whoever started it: our own launcher, torchrun, srun or submitit.

`rank_main` is the one entry for training, evaluation, benchmark and preflight. What was decided before ranks start is
read from the folder that our launcher prepared. Under torchrun and SLURM no process ran before the ranks: there rank 0
prepares, and the others get the result from it.
"""

import contextlib
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from txl.config.model import BiasInit
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig
from txl.errors import ConfigError, disk_fault, error_line, shortened
from txl.evaluate.targets import missed_training_targets
from txl.files import read_json, short_path
from txl.launch.choose_checkpoint import finished_message
from txl.launch.prepare import Prepared, prepare
from txl.launch.run_folder import error_file, job_folder, read_config
from txl.plan.batch_split import divisors
from txl.plan.run_plan import Plan
from txl.report.loss_curve import LOSS_CURVE
from txl.system.console import escape_what_cannot_be_printed, log_to_console
from txl.system.hang_watch import HangWatch
from txl.system.process_exit import BAD_CONFIGURATION, INTERRUPTED, MISSED_TARGET, leave
from txl.system.world import World

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def rank_main(
    config: RunConfig | EvaluateConfig,
    folder: Path | None = None,
    prepared: Prepared | None = None,
    submitted: bool = False,
    before_save: Callable[[], None] | None = None,
) -> int:
    """Be one rank of a training, an evaluation, a benchmark or a preflight.

    Args:
        config: What to run.
        folder: Where this rank's error file and a benchmark's or preflight's result go; None: the job's own folder.
        prepared: A training as our launcher prepared it; None: rank 0 prepares it here.
        submitted: The run folder was written by whoever submitted the job (see `prepare`).
        before_save: Called on rank 0 before it saves a checkpoint.

    Returns:
        The exit code of this process.

    Raises:
        ConfigError: If rank 0 could not prepare the run. Later failures of a rank among others end its process.
    """
    world = World.from_environment()
    if isinstance(config, EvaluateConfig):
        folder = folder or (Path(config.run_dir) if config.run_dir else None)
        return reporting_failure(functools.partial(_evaluate, config, world, folder), folder, world)
    if config.preflight:
        from txl.launch.preflight import preflight

        return preflight(config, world, folder or job_folder(config))
    if isinstance(config, BenchmarkConfig):
        result = folder or job_folder(config)
        return reporting_failure(functools.partial(_measure, config, world, result), result, world)
    with contextlib.ExitStack() as stack:
        if prepared is None:
            prepared = _prepare_together(config, world, submitted, stack)
        if prepared.finished:
            return _end_again(config, Path(prepared.plan.run_dir)) if world.is_main else 0
        train = functools.partial(_train, config, prepared, world, folder or Path(prepared.plan.run_dir), before_save)
        return reporting_failure(train, folder or Path(prepared.plan.run_dir), world)


def is_training(config: RunConfig | EvaluateConfig) -> bool:
    """Whether this is a training, and no benchmark, preflight or evaluation."""
    return isinstance(config, RunConfig) and not isinstance(config, BenchmarkConfig) and not config.preflight


def set_up_process(config: RunConfig | EvaluateConfig, world: World) -> "torch.device":
    """Pick this rank's device, set its cores, threads and allocator, and meet the other ranks."""
    from txl.config.machine_rules import check_cpu_arithmetic
    from txl.system.devices import bind_to_numa_node, keep_freed_memory, pick_device, set_threads
    from txl.system.distributed import init_process_group

    device = pick_device(config.hardware, world.local_rank)
    if device.type == "cpu" and isinstance(config, EvaluateConfig):  # a training's plan has checked it
        check_cpu_arithmetic(config.precision.name, "this machine")
    bind_to_numa_node(device, world.local_rank, world.local_world_size)
    set_threads(device, world.local_world_size)
    keep_freed_memory(device)
    init_process_group(world, device, config.cluster.hang_minutes)  # does nothing if the ranks have met already
    return device


def watch_for_hangs(config: RunConfig | EvaluateConfig, world: World, folder: Path | None) -> contextlib.ExitStack:
    """Watch the ranks' progress until the returned stack is closed. A single process is not watched."""
    watching = contextlib.ExitStack()
    if world.world_size > 1 and folder is not None:
        watch = HangWatch(folder, world, config.cluster.hang_minutes).start()
        watching.callback(watch.stop)
    return watching


def reporting_failure(work: Callable[[], int], folder: Path | None, world: World) -> int:
    """Do the work of a rank among others. If it fails, write logs/rank_N.error and end the process at once.

    A graceful end would wait for the collectives of the other ranks. A single process raises as usual.
    """
    if "RANK" not in os.environ:
        return work()
    file = error_file(folder, world.rank) if folder else None
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    try:
        return work()
    except KeyboardInterrupt:  # the second Ctrl-C
        leave(INTERRUPTED)
    except SystemExit as stop:  # the second SIGTERM
        leave(stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        fault = None if isinstance(error, ConfigError) else disk_fault(error)
        text = f"{error_line(fault or error)}\n" if fault or isinstance(error, ConfigError) else traceback.format_exc()
        with contextlib.suppress(OSError):  # no room on the disk: it is printed in any case
            if file:
                file.write_text(text)
        print(text, file=sys.stderr, flush=True)
        os._exit(1)


# --------------------------------------------------------------------------- the four kinds of work


def _train(
    config: RunConfig, prepared: Prepared, world: World, folder: Path, before_save: Callable[[], None] | None
) -> int:
    from txl.checkpoint.init_from import initialize_from_checkpoint
    from txl.data.corpus import log_notes_to_files, open_corpus
    from txl.system.distributed import close_process_group
    from txl.tracking.sinks import TrackedRun
    from txl.tracking.tracker import open_tracker
    from txl.train.frequency_biases import set_frequency_biases
    from txl.train.trainer import Trainer

    watch = watch_for_hangs(config, world, folder)
    device = set_up_process(config, world)
    corpus = prepared.corpus or open_corpus(config.data)
    with mistakes_of_the_machine(prepared.plan):
        tracker = open_tracker(TrackedRun.of(config), None if config.debug else Path(prepared.plan.run_dir), world.rank)
        if world.is_main:
            log_notes_to_files(corpus)
        trainer = Trainer(config, prepared.plan, corpus, world, device, tracker)
        trainer.before_save = before_save
        if prepared.checkpoint:
            trainer.restore(Path(prepared.checkpoint))
        elif config.init_from is not None:
            report = initialize_from_checkpoint(trainer.model, corpus.vocab, config)
            if world.is_main:
                print(report, flush=True)
        elif config.model.bias_init is BiasInit.unigram:
            set_frequency_biases(trainer.model, corpus)
        code = trainer.train()
    if world.is_main and trainer.state.step >= config.train.max_step and not config.debug:
        draw_loss_curve(Path(prepared.plan.run_dir))
    close_process_group()
    watch.close()
    return code


def _end_again(config: RunConfig, run_dir: Path) -> int:
    """Say that the run is finished, make what a kill at its end left out, and return its exit code once more."""
    print(finished_message(config, run_dir))
    picture, metrics = run_dir / LOSS_CURVE, run_dir / "metrics.jsonl"
    if metrics.exists() and not (picture.exists() and picture.stat().st_mtime >= metrics.stat().st_mtime):
        draw_loss_curve(run_dir)
    missed = missed_training_targets(config, read_json(run_dir / "summary.json"))
    for line in missed:
        print(line)
    return MISSED_TARGET if missed else 0


@contextlib.contextmanager
def mistakes_of_the_machine(plan: Plan) -> Iterator[None]:
    """Turn a GPU without memory, and a disk without room, into one line with the remedy.

    Raises:
        ConfigError: In place of torch's OutOfMemoryError, and of an OSError about a full or read-only disk.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        smaller = [size for size in divisors(plan.micro_batch_size) if size < plan.micro_batch_size]
        remedy = f"train.micro_batch_size={smaller[-1]}" if smaller else "recompute=true or a smaller model"
        raise ConfigError(
            f"train.micro_batch_size={plan.micro_batch_size} does not fit into the GPU's memory; use {remedy} "
            "(the global batch stays the same), and resume=auto if the run has saved already"
        ) from None
    except OSError as error:
        reason = disk_fault(error)
        if reason is None:
            raise
        raise ConfigError(
            f"run_dir={shortened(plan.run_dir)} cannot be written: {reason.rpartition(': ')[2]}; the checkpoints there "
            "are whole. Free some room or mend the disk, then resume=auto continues (checkpoint.keep=1 needs less)"
        ) from None


def draw_loss_curve(run_dir: Path) -> None:
    """Draw the finished run's loss curve. A picture that cannot be drawn does not make the run fail."""
    from txl.report.loss_curve import plot_loss_curve

    try:
        print(f"Loss curve: {short_path(plot_loss_curve(run_dir))}", flush=True)
    except Exception as error:
        print(f"note: no loss curve was drawn: {error}", file=sys.stderr, flush=True)


def _evaluate(config: EvaluateConfig, world: World, folder: Path | None) -> int:
    from txl.config.schema import Task
    from txl.evaluate.evaluator import Evaluator
    from txl.evaluate.generate import generate_texts
    from txl.evaluate.score_file import score_file
    from txl.system.distributed import close_process_group

    watch = watch_for_hangs(config, world, folder)
    device = set_up_process(config, world)
    if config.task is Task.evaluate:
        code = Evaluator(config, world, device).run()
    else:
        code = (generate_texts if config.task is Task.generate else score_file)(config, device)
    close_process_group()
    watch.close()
    return code


def _measure(config: BenchmarkConfig, world: World, folder: Path) -> int:
    from txl.bench.table_file import write_table
    from txl.bench.train_step import RESULT, measure_training
    from txl.system.distributed import close_process_group

    device = set_up_process(config, world)
    measure_training(config, world, device, lambda rows: write_table(folder / RESULT, [vars(row) for row in rows]))
    close_process_group()
    return 0


# --------------------------------------------------------------------------- how ranks begin


def _prepare_together(config: RunConfig, world: World, submitted: bool, stack: contextlib.ExitStack) -> Prepared:
    """Rank 0 prepares and holds the lock until `stack` ends; every rank returns what it decided."""
    from txl.system.devices import pick_device
    from txl.system.distributed import barrier, broadcast_object, init_process_group

    prepared: Prepared | None = None
    problem: str | None = None
    if world.is_main:
        try:
            prepared = stack.enter_context(prepare(config, submitted))
            log_to_console()
            log.info("%s", prepared.plan)
        except ConfigError as error:
            problem = str(error)
    try:
        device = pick_device(config.hardware, world.local_rank)
    except ConfigError as error:  # perhaps on this rank alone, which must say it
        print(error_line(f"rank {world.rank}: {error}"), file=sys.stderr, flush=True)
        os._exit(BAD_CONFIGURATION)
    init_process_group(world, device, config.cluster.hang_minutes)
    decided, problem = broadcast_object((prepared and prepared.for_other_processes(), problem))
    if problem is not None or decided is None:
        raise ConfigError(problem or "rank 0 could not prepare the run")
    barrier()
    return prepared or decided


def main(folder: Path) -> int:
    """A rank that our launcher started on this machine; returns its exit code."""
    escape_what_cannot_be_printed()
    config = read_config(folder)
    return rank_main(config, folder, Prepared.read(folder) if is_training(config) else None)
