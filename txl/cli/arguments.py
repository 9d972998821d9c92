"""Checks a command line before Hydra reads it: flags in any place, flags of the original, arguments without `=`."""

import re
from pathlib import Path

from txl.cli.original_flags import answer_to_original_flags
from txl.cli.user_conf import user_conf_folders
from txl.config.did_you_mean import did_you_mean, dotted_keys
from txl.errors import ConfigError, shortened
from txl.files import CONF

# Hydra's flags: those that stand alone, and those that a value follows.
SWITCHES = "--help -h --hydra-help --version --resolve --run -r --multirun -m --shell-completion -sc".split()
VALUED = "--cfg -c --package -p --config-path -cp --config-name -cn --config-dir -cd --experimental-rerun".split()
MOST_KEY = 200  # characters; longer keys and names of choices are mistakes
PRINTED = ("job", "hydra", "all")  # values of --cfg
OPTIONAL = {  # a value may follow
    flag: ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath") for flag in ("--info", "-i")
}


def split_arguments(arguments: list[str], script: str, kind: type) -> tuple[list[str], list[str]]:
    """Separates overrides (key=value) from Hydra's flags, which may stand in any place.

    Args:
        arguments: The command line.
        script: Whose it is: train, evaluate or benchmark.
        kind: The type of its configuration.

    Returns:
        The overrides, and Hydra's flags with their values.

    Raises:
        ConfigError: A flag is unknown or lacks its value, or an argument is not key=value.
    """
    overrides: list[str] = []
    flags: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name = argument.partition("=")[0]
        if argument == "--json" and hasattr(kind, "json"):
            overrides.append("json=-")
        elif not argument.startswith("-"):
            overrides.append(argument)
        elif argument in SWITCHES or ("=" in argument and name in (*VALUED, *OPTIONAL)):
            flags.append(argument)
        elif argument in VALUED:
            if not waiting:
                raise ConfigError(f"{argument} needs a value")
            if argument in ("--cfg", "-c") and waiting[0] not in PRINTED:
                raise ConfigError(f"{argument} {shortened(waiting[0])} must be one of {', '.join(PRINTED)}")
            flags += [argument, waiting.pop(0)]
        elif argument in OPTIONAL:
            flags += [argument, *([waiting.pop(0)] if waiting and waiting[0] in OPTIONAL[argument] else [])]
        else:
            known = did_you_mean(name.lstrip("-").replace("-", "_"), dotted_keys(kind)) if len(name) < 100 else ""
            unknown = f"{shortened(argument)} is not a flag; options are written key=value{known}"
            raise ConfigError(answer_to_original_flags(arguments, script) or unknown)
    _check_overrides(overrides, script, kind)
    return overrides, flags


def config_dir_of(flags: list[str]) -> str | None:
    """Returns the value of --config-dir, given Hydra's flags."""
    for flag, value in zip(flags, [*flags[1:], ""], strict=False):
        name, equals, folder = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            return folder if equals else value
    return None


def _check_overrides(overrides: list[str], script: str, kind: type) -> None:
    groups = {folder.name for conf in (CONF, *user_conf_folders()) for folder in conf.iterdir() if folder.is_dir()}
    keys = dotted_keys(kind).keys() | groups
    for i, override in enumerate(overrides):
        key, equals, value = override.partition("=")
        before = overrides[i - 1] if i else ""
        if not equals and not override.startswith("~"):
            raise ConfigError(_without_equals(override, before, overrides[i + 1 : i + 2], script, keys))
        if equals and not key:
            raise ConfigError(f"`{shortened(override)}` has no key; write key=value without spaces")
        if len(key) > MOST_KEY:
            raise ConfigError(f"{shortened(key)} is not an option")
        if len(value) > MOST_KEY and key in groups:
            raise ConfigError(f"{key}={shortened(value)} does not exist")
        if re.search(r"\d{1000}", value) and key not in ("text", "prompt"):
            raise ConfigError(f"{key}={shortened(value)} has a number of more than 1000 digits; write a smaller one")
        if key.lstrip("+") == "train.micro_batch_cap" and value not in ("null", "{}"):
            raise ConfigError(f"{key} can be set in YAML files only; use train.micro_batch_size=4 on the command line")
        choices = re.split(r"[\s,]+", value[1:-1].strip()) if value.startswith("[") else []
        if key in groups and not all(re.fullmatch(r"[A-Za-z_][\w./-]*", choice) for choice in choices):
            rule = "must name one of the files in its folder of conf/, no other value"
            raise ConfigError(f"a choice ({key}) {rule}")


def _without_equals(word: str, before: str, after: list[str], script: str, keys: set[str]) -> str:
    """What to write instead of a word that is no key=value."""
    shown = shortened(word)
    if not word.strip():
        return "an argument is empty; write key=value"
    if before.endswith("="):
        return f"{shortened(before)} {shown} has a space after `=`; write {shortened(before)}{shown}"
    if word in keys:
        value = after[0].removeprefix("=") if after and not re.match(r"[\w.@/]+=", after[0]) else "..."
        return f"{word} lacks an equals sign; write {word}={shortened(value)}"
    choices = [file.parent.name for file in CONF.glob(f"*/{word}.yaml")] if re.fullmatch(r"[\w-]{1,99}", word) else []
    if choices:
        return f"{word} is not key=value; write {choices[0]}={word}"
    if len(word) < 250 and Path(word).exists():
        text = script == "train" and Path(word).is_file()
        option = "data=text data.file" if text else "checkpoint" if script == "evaluate" else "run_dir"
        return f"{shown} is not key=value; write {option}={shown}"
    return f"{shown} is not key=value{did_you_mean(word, keys) if len(word) < 100 else ''}"
