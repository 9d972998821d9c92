"""Command lines of train, evaluate and benchmark with values of every kind: composed, checked and planned."""

import enum
import functools
import pickle
import random
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from omegaconf import DictConfig

from tools.fuzz.answers import problem_of
from txl.cli.arguments import split_arguments
from txl.cli.hydra_main import KINDS, checked_config, quote_typed_text
from txl.config.compose import register_types
from txl.config.did_you_mean import dotted_keys
from txl.config.error_messages import composition_error
from txl.config.schema import BenchmarkConfig, RunConfig
from txl.errors import ConfigError
from txl.files import CONF

WHOLE_COMPOSITION = 0.01  # share of command lines that Hydra composes anew, a fifth of a second each

NUMBERS = "0 1 -1 2 3 7 16 100 1000 250 1e3 .5 1. 0.1 1e-8 1e308 -1e308 1e999 nan inf -inf .999999 10000000".split()
NUMBERS += [str(2**31), str(2**63), str(2**64), str(-(2**63)), "9" * 40, "0x10", "1_000", "+5", "1e-400", "00012"]
TEXTS = [
    "",
    "''",
    "null",
    "None",
    "???",
    "'???'",
    "true",
    "false",
    "yes",
    "a",
    "a b",
    "a,b",
    "auto",
    "~",
    "-",
    "*",
    ".",
]
TEXTS += [
    "..",
    "/",
    "/dev/null",
    "/nowhere/x",
    "x" * 300,
    "x" * 5000,
    "ä",
    "\u2028",
    "\x00",
    "a\nb",
    "\t",
    "\\",
    "'",
    '"',
]
TEXTS += [
    "${seed}",
    "${nope}",
    "${oc.env:NOPE}",
    "${train.max_step}",
    "${by_recipe:1,2}",
    "${",
    "$",
    "{}",
    "[]",
    "[[]]",
]
TEXTS += ["{a: 1}", "{a:{b:c}}", "[1,2]", "[1,a,null]", "[.9,.1]", "[0,-1]", "{cpu: 1}", "[???]", "1,2", "range(1,3)"]
TEXTS += ["glob(*)", "choice(1,2)", "=", "==", "a=b", "@", "#", "%s", "\U0001f600", "[" * 50, "{" * 50, "(" * 50]


def command_line(seed: int) -> tuple[str, list[str]]:
    """A script's name and arguments, the same for the same seed."""
    rng = random.Random(seed)
    script = rng.choices(list(KINDS), [6, 2, 2])[0]
    arguments = [] if rng.random() < 0.2 else _choices(script, rng)
    is_plausible = rng.random() < 0.5
    for _ in range(rng.choices([0, 1, 2, 3, 5], [1, 6, 4, 2, 1])[0]):
        arguments.append(_plausible_override(script, rng) if is_plausible else _override(script, rng))
    if rng.random() < 0.1:
        rng.shuffle(arguments)
    return script, arguments


def check_command_line(script: str, arguments: list[str], whole: bool = True) -> None:
    """Compose, check and plan, as the command line's own code does. Raises ConfigError for a mistake.

    Args:
        script: train, evaluate or benchmark.
        arguments: The command line.
        whole: Let Hydra compose everything anew. Otherwise a composition of the same choices is copied, and the other
            overrides are applied to it by the function that Hydra applies them with.
    """
    kind = KINDS[script]
    overrides, _ = split_arguments(arguments, script, kind)
    try:
        cfg = _compose(script, [quote_typed_text(override) for override in overrides], whole)
    except Exception as error:
        raise ConfigError(composition_error(error, kind, overrides)) from None
    config = checked_config(cfg, kind)
    if isinstance(config, RunConfig):
        from txl.plan.run_plan import plan_without_data

        str(plan_without_data(config))
        if not isinstance(config, BenchmarkConfig) and config.cluster.name == "slurm":
            from txl.launch.slurm_script import sbatch_script

            sbatch_script(config, plan_without_data(config))


def problem_of_command_line(seed: int) -> tuple[str, str | None]:
    """The command line of a seed, and what is wrong with its answer."""
    script, arguments = command_line(seed)
    whole = random.Random(-seed - 1).random() < WHOLE_COMPOSITION
    return " ".join([script, *map(repr, arguments)])[:2000], problem_of(
        lambda: check_command_line(script, arguments, whole)
    )


# --------------------------------------------------------------------------- composing

GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def _compose(script: str, overrides: list[str], whole: bool) -> DictConfig:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = [] if whole else [override for override in overrides if override.partition("=")[0] in GROUPS]
    if whole:
        return _compose_anew(script, overrides)
    parsed = OverridesParser.create().parse_overrides([one for one in overrides if one not in choices])
    cfg: DictConfig = pickle.loads(_chosen(script, tuple(choices)))  # a seventh of the time of a deep copy
    ConfigLoaderImpl._apply_overrides_to_config(overrides=parsed, cfg=cfg)
    return cfg


@functools.lru_cache(maxsize=1000)
def _chosen(script: str, choices: tuple[str, ...]) -> bytes:
    return pickle.dumps(_compose_anew(script, list(choices)))


def _compose_anew(script: str, overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    register_types()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, overrides)


# --------------------------------------------------------------------------- random command lines


@functools.cache
def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


CHOSEN = {  # choices that are usual, so that few compositions serve most command lines
    "model": ["base", "large", "small"],
    "data": ["wt103", "enwik8", "text"],
    "hardware": ["cpu", "dgx2"],
    "optimizer": ["lamb", "muon"],
}


def _choices(script: str, rng: random.Random) -> list[str]:
    if script == "evaluate":
        return ["checkpoint=runs/a"] if rng.random() < 0.8 else []
    chosen = [f"{group}={rng.choice(CHOSEN[group])}" for group in CHOSEN if rng.random() < 0.4]
    if rng.random() < 0.02:
        group = rng.choice(sorted(GROUPS - {"published"}))
        chosen.append(f"{group}={rng.choice([*_options(group), *TEXTS])}")
    return chosen


PLAUSIBLE = {  # values that most rules let pass, so that those between values are reached, and the plan
    int: "0 1 2 3 4 6 8 16 24 32 64 96 100 128 192 256 512 768 1000 1024 4096 40000 1000000".split(),
    float: "0 .001 .01 .1 .25 .5 .9 1 2 10 100".split(),
    bool: ["true", "false"],
}


def _plausible_override(script: str, rng: random.Random) -> str:
    key, kind = rng.choice(_typed_keys(script))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"{key}={rng.choice(list(kind.__members__))}"
    return f"{key}={rng.choice(PLAUSIBLE[kind])}"


@functools.cache
def _typed_keys(script: str) -> list[tuple[str, type]]:
    """Options whose values are numbers, true or false, or names, with their type."""
    found = []
    for key, hint in dotted_keys(KINDS[script]).items():
        for kind in get_args(hint) or [hint]:
            if kind in PLAUSIBLE or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
                found.append((key, kind))
    return found


def _override(script: str, rng: random.Random) -> str:
    keys = dotted_keys(KINDS[script])
    key, hint = rng.choice(list(keys.items()))
    if rng.random() < 0.04:
        key = rng.choice(
            [key + "x", key.upper(), key + ".", "." + key, key.replace(".", ".."), key + "[0]", key + "@a"]
        )
    prefix = rng.choices(["", "+", "++", "~"], [20, 1, 1, 1])[0]
    if prefix == "~" and rng.random() < 0.7:
        return f"~{key}"
    return f"{prefix}{key}={_value(hint, rng)}"


def _value(hint: Any, rng: random.Random) -> str:
    """Half of the values are of the option's type."""
    if rng.random() < 0.5 or (isinstance(hint, type) and is_dataclass(hint)):
        return rng.choice([*NUMBERS, *TEXTS])
    kinds = [one for one in get_args(hint) if one is not type(None)] or [hint]
    kind = rng.choice(kinds)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return rng.choice(list(kind.__members__))
    if kind is bool or hint is bool:
        return rng.choice(["true", "false"])
    if get_origin(hint) is list:
        return "[" + ",".join(rng.choice(NUMBERS) for _ in range(rng.randint(0, 4))) + "]"
    return rng.choice(NUMBERS) if kind in (int, float) else rng.choice(TEXTS)
