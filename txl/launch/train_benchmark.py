"""benchmark.py suite=train: who measures, here or as a SLURM job, and the table beside what was published."""

import json
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from txl.bench.train_step import RESULT, run_rank, write_table
from txl.config.schema import BenchmarkConfig
from txl.errors import ConfigError
from txl.launch.benchmark_rank import join
from txl.launch.local_processes import run_local_ranks
from txl.launch.run_folder import folder_of, write_run_folder
from txl.launch.slurm_script import sbatch_script
from txl.launch.start import is_slurm_task, submit_one
from txl.plan.batch_split import processes
from txl.plan.run_plan import make_plan
from txl.system.world import World

PUBLISHED = Path(__file__).resolve().parent.parent / "bench" / "published_training.json"


# GPU: the machine it is nearest to; a CPU has none
NEAREST = [("V100.*16GB", "DGX-1"), ("V100", "DGX-2H"), ("A100|H100|H200", "DGX A100")]


def run(config: BenchmarkConfig, submitted: list) -> int:
    """Measure, print the table, write the JSON where that was asked for; returns the exit code.

    On a SLURM machine this submits a job, like a training, and the table is in its folder (benchmark.json); jobs to
    wait for are added to `submitted`.
    """
    vocab_size = config.data.vocab_size
    if vocab_size is None:
        raise ConfigError("data.vocab_size=null but a benchmark makes its tokens up; use data.vocab_size=50000")
    plan = make_plan(config, vocab_size)
    if config.dry_run:
        print(plan)
        if config.cluster.name == "slurm":
            print("\n" + sbatch_script(config))
        return 0
    if "RANK" in os.environ or is_slurm_task(config):
        return join(config, folder_of(config, plan))
    if config.cluster.name == "slurm":
        return submit_one(config, submitted)
    rows = []
    for count in config.benchmark.processes or [processes(config)[1]]:
        rows += measured(replace(config, gpus=count), count, vocab_size)
    for row in rows:
        row |= {"efficiency": efficiency(row, rows), "published": published(row)}
    print_comparison(rows)
    if config.benchmark.json:
        write_table(Path(config.benchmark.json), rows)
    return 0


def measured(config: BenchmarkConfig, count: int, vocab_size: int) -> list[dict]:
    """The rows of so many processes on this machine."""
    if count == 1:
        return [vars(row) for row in run_rank(config, World())]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_run_folder(config, make_plan(config, vocab_size), Path(folder), code=False)
        code = run_local_ranks("txl.launch.benchmark_rank", [folder], count, Path(folder))
        if code:
            sys.exit(code)
        return json.loads((Path(folder) / RESULT).read_text())["rows"]


def efficiency(row: dict, rows: list[dict]) -> float | None:
    """Tokens per second and process, over those of one process with the same share of the work (weak scaling)."""
    same = ("precision", "micro_batch_size")
    alone = [one for one in rows if one["processes"] == 1 and all(one[key] == row[key] for key in same)]
    return row["tokens_per_second"] / row["processes"] / alone[0]["tokens_per_second"] if alone else None


def published(row: dict) -> dict | None:
    """What the original published for this model, precision, micro batch and number of GPUs on the nearest machine."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    nearest = next((machine for pattern, machine in NEAREST if re.search(pattern, name)), None)
    precision = "fp16" if row["precision"] == "bf16" else row["precision"]
    asked = (nearest, row["model"], precision, row["processes"], row["micro_batch_size"])
    for one in json.loads(PUBLISHED.read_text()):
        if (one["machine"], one["model"], one["precision"], one["gpus"], one["micro_batch_size"]) == asked:
            return one
    return None


def print_comparison(rows: list[dict]) -> None:
    """Beside one process, and beside the published row, where there is one."""
    for row in rows:
        what = f"{row['precision']}, micro batch {row['micro_batch_size']}, {row['processes']} process(es)"
        if row["efficiency"] is not None and row["processes"] > 1:
            print(f"{what}: {row['efficiency']:.1%} of one process' tokens/s each")
        if row["published"]:
            one, ratio = row["published"], row["tokens_per_second"] / row["published"]["tokens_per_second"]
            print(f"{what}: {ratio:.2f} x the published {one['tokens_per_second']:,} tok/s ({one['machine']})")
