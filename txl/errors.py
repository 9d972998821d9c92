"""Mistakes in a configuration, said in one line: dotted key, value, rule, remedy."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)


class ConfigError(ValueError):
    """A value that the user can correct: the message names key, value, rule and remedy."""


def dotted_keys(kind: type, prefix: str = "") -> dict[str, Any]:
    """Every key of a configuration and its type: {"train.max_step": int, ...}."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        keys[prefix + name] = hint
        if is_dataclass(hint):
            keys |= dotted_keys(hint, f"{prefix}{name}.")
    return keys


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean train.max_step?`, or nothing: what is spelt alike in that section, or so called in another."""
    section, _, name = word.rpartition(".")
    parts = {option: option.rpartition(".") for option in known}
    beside = {last: option for option, (first, _, last) in parts.items() if first == section}
    anywhere = {last: option for option, (_, _, last) in parts.items()}
    close = [beside[last] for last in difflib.get_close_matches(name, beside, n=1, cutoff=0.7)]
    close += [option for option, (_, _, last) in parts.items() if last == name and option not in close]
    close = close or [anywhere[last] for last in difflib.get_close_matches(name, anywhere, n=1, cutoff=0.7)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unknown_key(key: str, kind: type) -> ConfigError:
    return ConfigError(f"{key} is not an option{did_you_mean(key, dotted_keys(kind))}")


def clear_error(error: OmegaConfBaseException, kind: type) -> ConfigError:
    """OmegaConf's error as one line: key, value, rule."""
    key, message = error.full_key or "", str(error).partition("\n")[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(key, kind)
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key} has no value; give one: {key}=...")
    entry = key.endswith("]")  # of a list
    hint = dotted_keys(kind).get(key.partition("[")[0])
    if not isinstance(error, ValidationError) or hint is None:
        return ConfigError(f"{key}: {message}" if key else message)
    if is_dataclass(hint):
        return ConfigError(f"{key} is a section: give its keys, such as {key}.{next(iter(get_type_hints(hint)))}=...")
    value = re.search(r"[Vv]alue '(.*?)'", message)
    shown = f"={value[1]}" if value else "=null" if "not Optional" in message else ""
    return ConfigError(f"{key}{shown} must be {describe(get_args(hint)[0] if entry else hint)}")


def describe(hint: Any) -> str:
    """A type in words: `a whole number or null`."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    if get_origin(hint) is list:
        return f"a list, each entry {describe(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "a table"
    return " or ".join(describe(part) for part in get_args(hint))
