"""Configurations as the entry points see them, composed in this process."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from txl.config.compose import register_types, to_typed
from txl.config.rules import validate
from txl.config.schema import RunConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} | {"hydra.searchpath"}


def composed(*overrides: str, name: str = "train", kind: type = RunConfig) -> Any:
    """The checked configuration of `python <name>.py <overrides>`.

    Hydra takes a quarter of a second for a composition: one serves all tests that make the same choices, and single
    values are set on a copy, as Hydra itself does it last of all.
    """
    choices = [override for override in overrides if override.partition("=")[0] in GROUPS]
    cfg = copy.deepcopy(_chosen(name, *choices))
    values = [override for override in overrides if override not in choices]
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return validate(to_typed(cfg, kind))


@cache
def _chosen(name: str, *choices: str) -> DictConfig:
    register_types()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(choices))
