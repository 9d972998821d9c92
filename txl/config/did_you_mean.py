"""The keys of a configuration, and which of them a misspelt key may mean."""

import difflib
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from txl.errors import ConfigError, shortened


def dotted_keys(kind: type, prefix: str = "") -> dict[str, Any]:
    """Returns every key of a configuration and its type: {"train.max_step": int, ...}."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        keys[prefix + name] = hint
        if isinstance(hint, type) and is_dataclass(hint):
            keys |= dotted_keys(hint, f"{prefix}{name}.")
    return keys


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean train.max_step?`, or an empty text if nothing is similar.

    The candidates are keys with a similar name in the same section, and those with the same name in other sections.
    """
    section, _, name = word.rpartition(".")
    parts = {option: option.rpartition(".") for option in known}
    beside = {last: option for option, (first, _, last) in parts.items() if first == section}
    close = [beside[last] for last in difflib.get_close_matches(name, beside, n=1, cutoff=0.7)]
    close += [option for option, (_, _, last) in parts.items() if last == name and option not in close]
    if not close:
        similar = difflib.get_close_matches(name, {last for _, _, last in parts.values()}, n=1, cutoff=0.7)
        close = [option for option, (_, _, last) in parts.items() if last in similar]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unknown_key(key: str, kind: type) -> ConfigError:
    """Returns the error for a key that the configuration does not have."""
    suggestion = did_you_mean(key, dotted_keys(kind)) if len(key) < 100 else ""
    return ConfigError(f"{shortened(key)} is not an option{suggestion}")
