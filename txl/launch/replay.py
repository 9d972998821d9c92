"""`txl replay RUN/divergence/step_N`: repeat the steps of a training that were not finite."""

import shutil
import sys
from pathlib import Path

from txl.errors import ConfigError, error_line
from txl.launch.start import Launcher
from txl.system.command_parser import CommandParser
from txl.system.process_exit import BAD_CONFIGURATION, DIVERGED
from txl.train.divergence_dump import read_divergence_dump


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0 if the training diverges again, 1 if it does not, 2 if it cannot be repeated."""
    parser = CommandParser(
        prog="txl replay",
        description="Repeat the steps of a training that were not finite, from the checkpoint before them, with a "
        "record of every step in FOLDER/replay. It takes as many processes as the training had, on this machine.",
    )
    parser.add_argument("folder", type=Path, help="RUN/divergence/step_N, which a diverged run wrote")
    folder = parser.parse_args(arguments).folder.absolute()
    try:
        place, config = read_divergence_dump(folder)
        config.cluster.name = "local"
        shutil.rmtree(str(config.run_dir), ignore_errors=True)
        print(f"the first step that was not finite: {place}, learning rate {place.lr:.3g}", flush=True)
        code = Launcher().start(config)
    except ConfigError as error:
        print(error_line(error), file=sys.stderr)
        return BAD_CONFIGURATION
    if code == DIVERGED:
        print(f"it diverged again; the record of every step: {config.run_dir}/metrics.jsonl")
        return 0
    print(f"it did not diverge again (exit code {code}): kernels of this machine may round in another way")
    return 1
