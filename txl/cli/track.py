"""`txl track RUN... --to wandb|tensorboard`: give the record of finished runs to a tracker that they did not have."""

import importlib.util
import os
import sys
from pathlib import Path

from txl.config.tracking import PACKAGES, SinkName, WandbMode
from txl.errors import ConfigError, error_line
from txl.report.runs import DEPTH, runs_below
from txl.system.command_parser import CommandParser
from txl.system.console import log_to_console
from txl.system.process_exit import BAD_CONFIGURATION

TRACKERS = (SinkName.wandb, SinkName.tensorboard)
MODES = (WandbMode.online, WandbMode.offline)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser(prog="txl track", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    parser.add_argument("--to", required=True, choices=[name.value for name in TRACKERS], help="the tracker")
    default = os.environ.get("WANDB_MODE", WandbMode.online.value)
    modes = [mode.value for mode in MODES]
    parser.add_argument("--mode", choices=modes, default=default, help="of wandb; default: $WANDB_MODE or online")
    options = parser.parse_intermixed_args(arguments)
    log_to_console()
    code = 0
    try:
        name = _installed(SinkName(options.to))
        mode = WandbMode(options.mode) if options.mode in modes else WandbMode.online
        for run in _find(options.runs):
            code = max(code, _track(run, name, mode))
    except ConfigError as error:
        return _print_error(str(error))
    return code


def _track(run: Path, name: SinkName, mode: WandbMode) -> int:
    from txl.tracking.finished_run import track_finished_run

    try:
        written = track_finished_run(run, name, mode)
    except ConfigError as error:
        return _print_error(str(error))
    print(f"{run}: {name.value} has its record" + ("" if written else " already"), flush=True)
    return 0


def _installed(name: SinkName) -> SinkName:
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"--to {name.value} needs the package {package}: pip install {package}")
    return name


def _find(paths: list[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        below = runs_below(path) if path.is_dir() else []
        if not below:
            raise ConfigError(f"{path} holds no run: no metrics.jsonl in it or up to {DEPTH} folders below")
        found |= dict.fromkeys(below)
    return list(found)


def _print_error(message: str) -> int:
    print(error_line(message), file=sys.stderr)
    return BAD_CONFIGURATION
