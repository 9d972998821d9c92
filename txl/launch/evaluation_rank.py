"""One rank of `evaluate.py`: on its own, or started by `launch.evaluate` beside others."""

import json
import os
import sys
import traceback
from pathlib import Path

from txl.config.compose import from_dict
from txl.config.rules import check_cpu_arithmetic
from txl.config.schema import EvaluateConfig, Task
from txl.errors import ConfigError
from txl.evaluate.evaluator import Evaluator
from txl.evaluate.generate import write
from txl.system.devices import keep_freed_memory, pick_device, set_threads
from txl.system.distributed import close_process_group, init_process_group
from txl.system.process_exit import leave
from txl.system.world import World


def run_rank(config: EvaluateConfig, world: World) -> int:
    """This rank's part of an evaluation, or a generation; returns the exit code."""
    device = pick_device(config.hardware, world.local_rank)
    if device.type == "cpu":
        check_cpu_arithmetic(config.precision.name, "this machine")
    keep_freed_memory(device)
    set_threads(device, world.local_world_size)
    init_process_group(world, device)
    code = write(config, device) if config.task is Task.generate else Evaluator(config, world, device).run()
    close_process_group()
    return code


def main(folder: Path) -> int:
    """A rank that `launch.evaluate` started."""
    config = from_dict(json.loads((folder / "evaluate.json").read_text()), EvaluateConfig)
    try:
        return run_rank(config, World.from_environment())
    except Exception as error:
        text = f"error: {error}" if isinstance(error, ConfigError) else traceback.format_exc()
        (folder / "logs" / f"rank_{os.environ['RANK']}.error").write_text(text)
        os._exit(1)  # a graceful end would wait for the others' collectives


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
