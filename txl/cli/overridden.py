"""Which values of a recipe the command line replaces: `train.batch_size=64`, where 256 was published."""

from collections.abc import Iterable
from typing import Any

from txl.config.compose import to_dict, to_typed
from txl.config.schema import RunConfig
from txl.files import CONF, flatten

# Sections that a recipe sets, and the choices that replace one of them as a whole.
SECTIONS = ("model", "train", "valid", "evaluation", "optimizer", "scheduler")
CHOICES = ("optimizer", "scheduler")
# How a batch is computed, and how often lines are logged, is no part of a recipe.
NOT_OF_A_RECIPE = ("train.micro_batch_size", "train.grad_accum_steps", "train.log_interval", "train.local_batch_size")
UNSET: tuple[Any, ...] = (None, [])  # values of options that another optimizer or schedule has
PUBLISHED_FOR = ("wt103",)  # data sets whose recipes are in conf/model/; those for others are in conf/published/


def recipe_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides that choose a recipe, without those that replace its values."""
    kept = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        section, dot, _ = key.partition(".")
        if not (dot and section in SECTIONS) and key not in CHOICES:
            kept.append(override)
    return kept


def overridden_values(config: RunConfig, overrides: list[str], name: str) -> dict[str, tuple[Any, Any]]:
    """The values of a run that differ from its recipe's: {key: (value, the recipe's)}.

    Args:
        config: The run, with its global batch.
        overrides: The command line that it was composed from. Hydra must be initialized.
        name: train or benchmark: the file of conf/ that it was composed from.
    """
    kept = recipe_overrides(overrides)
    if len(kept) == len(overrides):
        return {}
    from hydra import compose

    mine, recipe = flatten(to_dict(config)), flatten(to_dict(to_typed(compose(name, kept), type(config))))
    replaced = {section for section in CHOICES if mine[f"{section}.name"] != recipe[f"{section}.name"]}
    found = {}
    for key, value in mine.items():
        section, other = key.partition(".")[0], recipe.get(key)
        is_of_a_recipe = section in SECTIONS and key not in NOT_OF_A_RECIPE
        is_option_of_one = section in replaced and (value in UNSET or other in UNSET)
        if is_of_a_recipe and not is_option_of_one and value != other:
            found[key] = (value, other)
    return found


def has_published_recipe(config: RunConfig) -> bool:
    """Whether the original published a recipe for this model on this data set."""
    model, data = config.model.name, config.data.name
    is_in_model = model in ("base", "large") and data in PUBLISHED_FOR
    return is_in_model or (CONF / "published" / f"{model}_{data}.yaml").exists()
