"""benchmark.py suite=train on this machine: the table over numbers of processes, beside what was published."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from txl.bench.table_file import write_table
from txl.bench.train_step import RESULT
from txl.config.schema import BenchmarkConfig
from txl.files import read_json
from txl.launch.local_processes import run_local_ranks
from txl.launch.rank import rank_main
from txl.launch.run_folder import write_run_folder
from txl.plan.batch_split import processes
from txl.plan.published import published_training_row
from txl.plan.run_plan import plan_without_data


def benchmark_training(config: BenchmarkConfig) -> int:
    """Measure here, print the table, write the JSON if `benchmark.json` asks for it; returns the exit code.

    The rows that were measured before an interruption or a failure are written, too.
    """
    rows: list[dict[str, Any]] = []
    try:
        for count in config.benchmark.processes or [processes(config)[1]]:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                try:
                    code = run_ranks(replace(config, gpus=count), Path(folder))
                finally:
                    rows += (read_json(Path(folder) / RESULT) or {"rows": []})["rows"]
                if code:
                    return code
    finally:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        for row in rows:
            row |= {"efficiency": efficiency(row, rows), "published": published_training_row(row, gpu)}
        if config.benchmark.json and rows:
            write_table(Path(config.benchmark.json), rows)
    print_comparison(rows)
    return 0


def run_ranks(config: BenchmarkConfig, folder: Path) -> int:
    """Run all ranks of one measurement; a single one in this process. They write FOLDER/benchmark.json."""
    plan = plan_without_data(config)
    if plan.world_size == 1:
        return rank_main(config, folder)
    write_run_folder(config, plan, folder, code=False)
    return run_local_ranks(folder, plan.world_size)


def efficiency(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Tokens per second and process, over those of one process with the same share of the work (weak scaling)."""
    same = ("precision", "micro_batch_size")
    alone = [one for one in rows if one["processes"] == 1 and all(one[key] == row[key] for key in same)]
    return row["tokens_per_second"] / row["processes"] / alone[0]["tokens_per_second"] if alone else None


def print_comparison(rows: list[dict[str, Any]]) -> None:
    """Beside one process, and beside the published row, where there is one."""
    for row in rows:
        what = f"{row['precision']}, micro batch {row['micro_batch_size']}, {row['processes']} process(es)"
        if row["efficiency"] is not None and row["processes"] > 1:
            print(f"{what}: {row['efficiency']:.1%} of one process' tokens/s each")
        if row["published"]:
            one, ratio = row["published"], row["tokens_per_second"] / row["published"]["tokens_per_second"]
            print(f"{what}: {ratio:.2f} x the published {one['tokens_per_second']:,} tok/s ({one['machine']})")
