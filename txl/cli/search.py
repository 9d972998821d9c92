"""Search for good settings with Optuna. Every trial is a training.

Hopeless trials are stopped at a validation. Examples:
  txl search experiment=demo model.dropout=0.0,0.1,0.2 --trials 20 \\
      'optimizer.lr=tag(log,interval(1e-4,1e-2))'
  txl search model=small data=text data.file=a.txt --parallel 4 \\
      'model.n_layer=range(2,9)'              # one trial per GPU, 4 at once
  txl search hardware=dgx2 --parallel 8 \\
      'optimizer.lr=interval(0.005,0.02)'     # SLURM jobs, 8 at once

A key with several values is searched: interval(LOW,HIGH) numbers between,
int(interval(...)) whole numbers, tag(log,interval(...)) by their logarithm,
range(...) or a,b,c one of them. The same command continues a search.
"""

import argparse
import sys
from pathlib import Path

from txl.cli.arguments import split_arguments
from txl.cli.user_conf import search_user_conf
from txl.config.compose import register_types, to_typed
from txl.config.error_messages import composition_error
from txl.config.rules import validate
from txl.config.schema import RunConfig
from txl.config.tracking import WandbMode
from txl.errors import ConfigError, error_line, shortened
from txl.files import CONF, sha256_of_json
from txl.launch.search import run_search
from txl.launch.study import Dimension, Search, best_trial, open_study
from txl.plan.batch_split import with_global_batch
from txl.system.command_parser import CommandParser
from txl.system.console import escape_what_cannot_be_printed
from txl.system.hardware import visible_gpus
from txl.system.process_exit import BAD_CONFIGURATION, INTERRUPTED

# The search sets or forbids them.
OWN_KEYS = ("run_dir", "resume", "dry_run", "debug", "preflight", "cluster.wait")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    escape_what_cannot_be_printed()
    parser = CommandParser(prog="txl search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="as of txl train")
    parser.add_argument("--trials", type=_above_zero, default=20, help="number of trainings (20)")
    parser.add_argument("--parallel", type=_above_zero, help="trainings at once (the number of GPUs, or 1)")
    parser.add_argument("--folder", type=Path, help="of the study; default: RUNS/NAME/search-HASH")
    parser.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    parser.add_argument("--seed", type=int, default=0, help="of Optuna's choices (0)")
    options = parser.parse_intermixed_args(arguments)
    try:
        search = plan_search(options)
        code = run_search(search)
        if code != INTERRUPTED:
            _print_best(search)
        return code
    except ConfigError as error:
        print(error_line(error), file=sys.stderr)
        return BAD_CONFIGURATION


def _above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def plan_search(options: argparse.Namespace) -> Search:
    """What the command line asks for.

    Raises:
        ConfigError: Nothing is searched, or the first values of the space make no configuration.
    """
    overrides, _ = split_arguments(options.overrides, "train", RunConfig)
    fixed, space = split_space(overrides)
    if not space:
        raise ConfigError("nothing is searched: give a key several values, such as 'optimizer.lr=interval(1e-4,1e-2)'")
    for override in overrides:
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            raise ConfigError(f"{override} has no place in a search: trials have folders of their own; leave it out")
    config = compose_run([*fixed, *(f"{dimension.key}={first_value(dimension)}" for dimension in space)])
    name = sha256_of_json([fixed, [str(dimension) for dimension in space]])[:8]
    folder = options.folder or Path(config.runs) / config.name / f"search-{name}"
    if config.tracking.wandb.mode is not WandbMode.none and config.tracking.wandb.group is None:
        fixed = [*fixed, f"tracking.wandb.group=search-{name}"]
    on_slurm = config.cluster.name == "slurm"
    parallel = options.parallel or (1 if on_slurm else max(1, len(visible_gpus())))
    if not on_slurm and options.parallel is None and visible_gpus() and config.gpus is None:
        fixed = [*fixed, "gpus=1"]  # a GPU for each trial
    return Search(
        folder, fixed, space, options.trials, parallel, compose_run, options.seed, not options.no_pruning, on_slurm
    )


def split_space(overrides: list[str]) -> tuple[list[str], list[Dimension]]:
    """The overrides with one value, and those with several as dimensions of the search.

    Raises:
        ConfigError: A value cannot be read, or is neither a range nor a list of choices.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException

    fixed, space = [], []
    for typed in overrides:
        try:
            parsed: Override = OverridesParser.create().parse_override(typed)
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{shortened(typed)} cannot be read: {str(error).partition(chr(10))[0]}") from None
        if parsed.is_sweep_override():
            space.append(dimension_of(parsed.key_or_group, parsed.value(), typed))
        else:
            fixed.append(typed)
    return fixed, space


def dimension_of(key: str, value: object, typed: str) -> Dimension:
    """What Hydra reads as a sweep, as a dimension of the search. Raises ConfigError for what is none."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep

    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        whole, is_log = isinstance(value.start, int) and isinstance(value.end, int), "log" in value.tags
        if is_log and value.start <= 0:
            raise ConfigError(f"{typed}: an interval of logarithms begins above 0")
        return Dimension(key, float(value.start), float(value.end), log=is_log and not whole, whole=whole)
    if isinstance(value, RangeSweep):
        return Dimension(key, choices=tuple(str(one) for one in value.range()))
    if isinstance(value, ChoiceSweep):
        shown = {True: "true", False: "false", None: "null"}
        found = []
        for one in value.list:
            if isinstance(one, QuotedString):
                found.append(one.with_quotes())
            else:
                found.append(shown[one] if one is None or isinstance(one, bool) else str(one))
        return Dimension(key, choices=tuple(found))
    raise ConfigError(f"{typed}: give interval(LOW,HIGH), range(...), or values with commas between them")


def first_value(dimension: Dimension) -> str:
    """A value of a dimension, to find mistakes before the first trial."""
    if dimension.choices:
        return dimension.choices[0]
    return str(int(dimension.low)) if dimension.whole else repr(dimension.low)


def compose_run(overrides: list[str]) -> RunConfig:
    """The checked configuration of a training with these overrides. Raises ConfigError."""
    from hydra import compose, initialize_config_dir

    register_types()
    search_user_conf(None)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("train", overrides)
    except Exception as error:
        raise ConfigError(composition_error(error, RunConfig, overrides)) from None
    return with_global_batch(validate(to_typed(composed)))


def _print_best(search: Search) -> None:
    best = best_trial(open_study(search))
    if best is None:
        print("no trial has reached its end")
        return
    from txl.launch.next_commands import own_command

    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    command = own_command()
    print(f"best: trial {best.number}, valid loss {best.value:.4f}: {values}")
    print("\nNext:", f"  {command} report {search.folder}", sep="\n")
    print(f"  {command} evaluate checkpoint={search.folder / f'trial_{best.number}'}")
