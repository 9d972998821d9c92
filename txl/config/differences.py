"""What runs have differently: their configurations by the keys that differ."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from txl.config.yaml_file import read_yaml
from txl.errors import ConfigError, shortened
from txl.files import flatten

IGNORED_KEYS = ("run_dir", "resume", "cluster.wait")  # runs that differ in these alone are the same point
# Sections in the order in which a reader asks for them; the others follow.
SECTIONS = ("name", "model", "data", "optimizer", "scheduler", "train", "precision", "init_from")
MACHINE = ("checkpoint.", "cluster.", "hardware.", "tracking.")  # sections that change nothing of what is computed


def read_flat_config(run: Path) -> dict[str, Any]:
    """config.yaml with dotted keys. Raises ConfigError if it cannot be read."""
    file = run / "config.yaml"
    try:
        values = read_yaml(file)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise ConfigError(f"{file} cannot be read: {shortened(reason)}; leave the run out, or mend the file") from None
    if not isinstance(values, dict) or not {"name", "seed"} <= values.keys():
        raise ConfigError(f"{file} is no configuration of a run; leave the run out, or mend the file")
    return flatten(values)


def differing_keys(configurations: list[dict[str, Any]], ignored: Iterable[str] = IGNORED_KEYS) -> list[str]:
    """The dotted keys that do not have one value in all configurations, in alphabetical order."""
    keys = sorted({key for values in configurations for key in values} - set(ignored))
    return [key for key in keys if len({json.dumps(values.get(key)) for values in configurations}) > 1]


def group_same_differences(configurations: list[dict[str, Any]], keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys of which one says as much as the others, because they change together: {the one: the others}.

    The names come first, such as model.name; then the sections in the order of SECTIONS.
    """
    found: dict[tuple[int, ...], str] = {}
    groups: dict[str, list[str]] = {}
    for key in sorted(keys, key=_interest):
        values = [json.dumps(values.get(key)) for values in configurations]
        first = found.setdefault(tuple(values.index(value) for value in values), key)
        groups.setdefault(first, []).extend([] if first == key else [key])
    return groups


def _interest(key: str) -> tuple[bool, int, bool, str]:
    section, _, last = key.partition(".")
    place = SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)
    return last != "name", place, section == key, key


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """`lr` for optimizer.lr and `model` for model.name, where that is unique; otherwise the whole key."""
    keys = list(keys)
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def name_points(configurations: list[dict[str, Any]]) -> list[str]:
    """Name each run by the keys that differ from the others; a single one by its name and seed."""
    if len(configurations) == 1:
        return [f"{configurations[0]['name']} seed={configurations[0]['seed']}"]
    differing = sorted(differing_keys(configurations), key=lambda key: (key.startswith(MACHINE), _interest(key)))
    named = (" ".join(f"{key}={values.get(key)}" for key in differing) for values in configurations)
    return [name or str(values["name"]) for name, values in zip(named, configurations, strict=True)]
