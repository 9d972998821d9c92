"""From a checked configuration to running ranks: in this process, as processes on this machine, or as a SLURM job.

A process that finds RANK in its environment (torchrun), or that a SLURM step started for us, *is* a rank. Otherwise
cluster=slurm submits a job, and cluster=local runs a single rank in this process or starts one process per device.
"""

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from txl.config.output_files import check_output_file, check_output_files, writing_output
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, Suite, Task
from txl.files import read_json, to_json, write_json
from txl.launch.local_processes import run_local_ranks
from txl.launch.run_folder import write_config, write_run_folder
from txl.plan.batch_split import processes
from txl.plan.dry_run import DryRun, known_data
from txl.plan.expected_speed import expected_speed
from txl.plan.run_plan import plan_without_data, run_folder
from txl.system.console import log_to_console
from txl.system.slurm_jobs import SubmittedJob
from txl.system.world import World

log = logging.getLogger(__name__)


class Launcher:
    """Starts one configuration after another, and waits at the end for jobs that were submitted."""

    def __init__(self) -> None:
        self.submitted: list[SubmittedJob] = []  # jobs of all points that cluster.wait=true waits for
        self.trained: list[RunConfig] = []  # trainings that ran here, and those that were waited for
        self.last: RunConfig | EvaluateConfig | None = None  # what was started last

    def start(self, config: RunConfig | EvaluateConfig) -> int:
        """Run a training, an evaluation or a benchmark to its end, or submit it; returns the exit code."""
        if shows_console(config):
            log_to_console()
        check_output_files(config)
        self.last = config
        code = self._start(config)
        if code == 0 and config.cluster.name != "slurm" and shows_console(config) and is_plain_training(config):
            self.trained.append(config)
        return code

    def _start(self, config: RunConfig | EvaluateConfig) -> int:
        if isinstance(config, BenchmarkConfig) and config.suite is not Suite.train:
            return print_measurements(config) if config.dry_run else measure_here(config)
        if isinstance(config, RunConfig) and config.dry_run:
            return show_dry_run(config)
        if "RANK" in os.environ:
            from txl.launch.rank import rank_main

            return rank_main(config)
        if is_slurm_task(config):
            from txl.launch.slurm_rank import slurm_rank_main

            return slurm_rank_main(config)
        if isinstance(config, EvaluateConfig):
            return self.submit_evaluation(config) if config.cluster.name == "slurm" else evaluate_here(config)
        if config.cluster.name == "slurm":
            return self.submit([config])
        if isinstance(config, BenchmarkConfig):
            from txl.launch.train_benchmark import benchmark_training

            return benchmark_training(config)
        return check_here(config) if config.preflight else train_here(config)

    def submit(self, configs: list[RunConfig], parallel: int | None = None) -> int:
        """Submit runs to SLURM; as throttled job arrays if `parallel` is given."""
        from txl.launch.slurm_submit import submit

        jobs, queued = submit(configs, parallel)
        print_submitted(jobs)
        if any(config.cluster.wait for config in configs):
            self.submitted += jobs + queued
            self.trained += configs
        return 0

    def submit_evaluation(self, config: EvaluateConfig) -> int:
        """Submit an evaluation or a generation to SLURM."""
        from txl.launch.slurm_submit import submit_evaluation

        job = submit_evaluation(config)
        print_submitted([job])
        print(f"  result: {config.json or job.run_dir / 'result.json'}", flush=True)
        if config.cluster.wait:
            self.submitted.append(job)
        return 0

    def show_next_commands(self, is_sweep: bool) -> None:
        """Print what can follow the trainings that have reached their end here; nothing if there are none."""
        ended = [config for config in self.trained if (Path(run_folder(config)) / "summary.json").exists()]
        if ended:
            from txl.launch.next_commands import show_next_commands

            show_next_commands(ended, is_sweep)

    def best_valid_loss(self) -> float | None:
        """The lowest validation loss of the training that was started last, as Hydra's sweepers ask for it.

        Infinity for one that failed; None for anything else, and for a job that was only submitted.
        """
        config = self.last
        if config is None or not is_plain_training(config) or config.cluster.name == "slurm":
            return None
        loss = (read_json(Path(run_folder(config)) / "summary.json") or {}).get("best_valid_loss")
        return float(loss) if isinstance(loss, int | float) else math.inf

    def wait(self) -> int:
        """Wait for the submitted jobs that cluster.wait=true asked to wait for; returns the worst exit code."""
        if not self.submitted:
            return 0
        from txl.launch.wait_for_jobs import wait_for_jobs

        return wait_for_jobs(self.submitted)


def print_submitted(jobs: list[SubmittedJob]) -> None:
    """Say how to follow jobs that were just submitted."""
    for one in jobs:
        print(f"job {one.job} submitted: {one.run_dir}\n  follow: tail -F {one.log}", flush=True)
    if jobs:
        folder = os.path.commonpath([one.run_dir for one in jobs])
        print(f"  status: txl status {folder}", flush=True)
    if len(jobs) > 1:
        print(f"  watch: txl report {folder} --watch", flush=True)


def shows_console(config: RunConfig | EvaluateConfig) -> bool:
    """Whether this process writes to the console: alone, or as rank 0 of those that torchrun or srun started."""
    if "RANK" in os.environ:
        return World.from_environment().is_main
    return not is_slurm_task(config) or os.environ.get("SLURM_PROCID", "0") == "0"


def is_plain_training(config: RunConfig | EvaluateConfig) -> TypeGuard[RunConfig]:
    """Whether this is a training that leaves a run folder behind."""
    if not isinstance(config, RunConfig) or isinstance(config, BenchmarkConfig):
        return False
    return not (config.dry_run or config.preflight or config.debug)


def is_slurm_task(config: RunConfig | EvaluateConfig) -> bool:
    """Whether a SLURM step started this process for us: cluster=srun says so, or submitit started it.

    A bare SLURM step is not enough: it may be somebody's interactive shell.
    """
    return config.cluster.name == "srun" or {"SUBMITIT_EXECUTOR", "SLURM_PROCID"} <= set(os.environ)


def show_dry_run(
    config: RunConfig, overridden: Mapping[str, tuple[Any, Any]] | None = None, is_published: bool = False
) -> int:
    """dry_run=true: print everything that decides the run, and what would be submitted; with json= write it as JSON.

    Args:
        config: A training.
        overridden: Values that the command line puts in place of the recipe's: {key: (value, the recipe's)}.
        is_published: The recipe is one that the original published.

    Returns:
        The exit code.
    """
    plan = plan_without_data(config)
    if config.resume is not None or config.init_from is not None:
        from txl.launch.choose_checkpoint import check_given_checkpoints

        check_given_checkpoints(config, Path(plan.run_dir))
    data = known_data(config.data, config.data.vocab_size, is_read=not isinstance(config, BenchmarkConfig))
    shown = DryRun(config, plan, data, expected_speed(config, plan), overridden or {}, is_published)
    if config.json == "-":
        print(to_json(shown.to_dict(), indent=1))
        return 0
    print(shown)
    if config.json is not None:
        check_output_file("json", Path(config.json))
        with writing_output("json", config.json):
            write_json(Path(config.json), shown.to_dict(), indent=1)
    if config.cluster.name == "slurm":
        from txl.launch.slurm_script import sbatch_script

        print("\n" + sbatch_script(config, plan))
    return 0


# --------------------------------------------------------------------------- this machine


def train_here(config: RunConfig) -> int:
    """Prepare a training and run all its ranks on this machine."""
    from txl.launch.prepare import prepare

    with prepare(config) as prepared:
        if not prepared.finished:
            log.info("%s", prepared.plan)
        if prepared.plan.world_size == 1 or prepared.finished:
            from txl.launch.rank import rank_main

            return rank_main(config, prepared=prepared)
        with contextlib.ExitStack() as stack:
            folder = Path(prepared.plan.run_dir)
            if config.debug:  # ranks read their configuration from a folder that is gone afterwards
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="debug-")))
                write_run_folder(config, prepared.plan, folder, code=False)
            prepared.write(folder)
            return run_local_ranks(folder, prepared.plan.world_size, prepared.lock)


def check_here(config: RunConfig) -> int:
    """preflight=true on this machine, in a temporary folder."""
    plan = plan_without_data(config)
    print(plan, flush=True)
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        write_run_folder(config, plan, Path(folder), code=False)
        return run_local_ranks(Path(folder), plan.world_size)


def evaluate_here(config: EvaluateConfig) -> int:
    """Evaluate or generate here, with one process per device; returns the exit code."""
    size = processes(config)[1]
    if "RANK" in os.environ or size == 1 or config.task is not Task.evaluate:
        from txl.launch.rank import rank_main

        return rank_main(config)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        write_config(config, Path(folder))
        return run_local_ranks(Path(folder), size)


def print_measurements(config: BenchmarkConfig) -> int:
    """dry_run=true of the suites that run in this process: say what would be measured."""
    options = config.benchmark
    if config.suite is Suite.encoding:
        print(f"would encode {options.megabytes} MB of made-up words on this machine")
        return 0
    chosen = (options.precisions, options.runtimes, options.batch_sizes)
    precisions, runtimes, sizes = (" ".join(str(getattr(one, "name", one)) for one in values) for values in chosen)
    print(f"would measure {config.model.name}, {options.segments} segments of every combination, on this machine")
    print(f"precisions   {precisions}\nruntimes     {runtimes}\nbatch sizes  {sizes}")
    return 0


def measure_here(config: BenchmarkConfig) -> int:
    """The suites that run in this process: inference and encoding."""
    if config.suite is Suite.encoding:  # needs no torch, and little memory: its children's peak includes its own
        from txl.bench.encoding import benchmark_encoding

        return benchmark_encoding(config)
    from txl.bench.inference import benchmark_inference

    return benchmark_inference(config)
