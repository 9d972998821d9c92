"""Sweeps: every point has a run folder of its own.

A run folder is named by the hash of what a run computes. Points that differ in other keys only (`nodes=1,2,4`,
`attention=eager,sdpa`) would share a folder: there the keys that are swept become part of its name.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from txl.config.config_hash import changes_no_hash, config_hash
from txl.config.schema import BenchmarkConfig, RunConfig
from txl.config.tracking import WandbMode
from txl.errors import ConfigError

Run = TypeVar("Run", bound=RunConfig)

MOST_GROUP = 128  # characters of the name of a group of wandb
OWN_NAMES = ("seed", "name", "runs", "run_dir", "resume")  # keys that name a folder in another way, or none


def swept_keys(overrides: list[str]) -> set[str]:
    """Returns the keys that have several values on the command line of a sweep.

    Raises:
        ConfigError: All points would have the folder that run_dir= names.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except (HydraException, ValueError):  # Hydra names the mistake when it composes
        return set()
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run_dir" and swept and "run_dir" not in swept and "${" not in value:
            raise ConfigError(
                f"run_dir={value} would be the folder of every point of this sweep; leave it out, or name the points: "
                f"'run_dir={value}/${{seed}}'"
            )
    return swept


class WithoutPoints(logging.Filter):
    """Leaves out Hydra's line about each point of a sweep, which repeats the whole command (conf/console.yaml)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record of Hydra is printed."""
        return not record.getMessage().startswith("\t#")


def point_heading(number: int, overrides: Iterable[str], swept: set[str]) -> str:
    """The line before a point of a sweep: its number, from 1, and its values of the keys that differ."""
    values = [override for override in overrides if override.lstrip("+").partition("=")[0] in swept]
    return f"point {number}: {' '.join(values)}"


def point_label(overrides: Iterable[str], swept: set[str]) -> str:
    """Returns what distinguishes a point's folder beside its hash and seed: `nodes=2`, for example; often nothing.

    Args:
        overrides: Those of this point, each with one value.
        swept: The keys that have several values in the sweep.
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in swept and key not in OWN_NAMES and changes_no_hash(key):
            parts.append(f"{key.rpartition('.')[2]}={re.sub(r'[^A-Za-z0-9_.,=+]', '_', value)}")
    return "-".join(parts)


def with_wandb_names(config: Run, overrides: Iterable[str], swept: set[str], sweep: Iterable[str]) -> Run:
    """Returns the run with wandb's group and name: the sweep, and what differs from its other points.

    Names that the user gave stay.

    Args:
        config: A point of a sweep.
        overrides: Those of this point, each with one value.
        swept: The keys that have several values in the sweep.
        sweep: The overrides of the whole sweep, as typed.
    """
    wandb = config.tracking.wandb
    if wandb.mode is WandbMode.none:
        return config
    values = [one.lstrip("+").partition("=") for one in overrides]
    point = " ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in values if key in swept)
    several = [one for one in sweep if one.lstrip("+").partition("=")[0] in swept]
    group = wandb.group or " ".join([config.name, *several])[:MOST_GROUP]
    named = replace(wandb, group=group, name=wandb.name or point or None)
    return replace(config, tracking=replace(config.tracking, wandb=named))


def with_own_folder(config: Run, label: str) -> Run:
    """Returns the run with the label in its folder's name: <runs>/<name>/<hash>-<label>-s<seed>."""
    if not label or config.run_dir is not None or isinstance(config, BenchmarkConfig):
        return config
    folder = Path(config.runs) / config.name / f"{config_hash(config)}-{label}-s{config.seed}"
    return replace(config, run_dir=str(folder))
