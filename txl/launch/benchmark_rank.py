"""One rank of `benchmark.py suite=train`: `python -m txl.launch.benchmark_rank FOLDER`."""

import os
import sys
from pathlib import Path

from txl.bench.train_step import RESULT, run_rank, write_table
from txl.config.schema import BenchmarkConfig
from txl.launch.rank import guarded
from txl.launch.run_folder import read_config
from txl.launch.slurm_environment import slurm_variables
from txl.system.process_exit import leave, leave_once_noted
from txl.system.world import World


def join(config: BenchmarkConfig, folder: Path) -> int:
    """A rank of several, started by train_benchmark.py, torchrun or SLURM: rank 0 writes FOLDER/benchmark.json."""
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        os.environ.update(slurm_variables(os.environ))
    world = World.from_environment()
    (folder / "logs").mkdir(parents=True, exist_ok=True)

    def measure_all() -> int:
        rows = run_rank(config, world)
        if world.is_main:
            write_table(folder / RESULT, [vars(row) for row in rows])
        return 0

    code = guarded(measure_all, folder, world.rank)
    leave_once_noted()
    return code


if __name__ == "__main__":
    leave(join(read_config(Path(sys.argv[1])), Path(sys.argv[1])))
