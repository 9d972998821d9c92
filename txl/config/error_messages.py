"""Errors of Hydra and OmegaConf as one line: dotted key, value, rule, remedy."""

import re
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from txl.config.did_you_mean import did_you_mean, dotted_keys, unknown_key
from txl.errors import ConfigError, shortened
from txl.files import CONF

MOST_QUOTED = 160  # characters of a message of Hydra


def omegaconf_error(error: OmegaConfBaseException, kind: type) -> ConfigError:
    """Converts OmegaConf's error. `kind` is the type of the whole configuration."""
    key, message = error.full_key or "", _first_line(str(error))
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(key, kind)
    if isinstance(error, MissingMandatoryValue):
        return missing_value(key)
    if "does not support deletion" in message:
        return ConfigError(f"{key} cannot be removed; give it another value: {key}=...")
    if "raised while resolving interpolation: $" in message:  # secrets.environment_value says why
        return ConfigError(f"{shortened(key)}: {message.partition('interpolation: ')[2]}")
    is_entry = key.endswith("]")  # of a list
    hint = dotted_keys(kind).get(key.partition("[")[0])
    if is_dataclass(hint) and isinstance(hint, type):
        return value_of_a_section(key, hint)
    if not isinstance(error, ValidationError) or hint is None:
        return ConfigError(f"{shortened(key)}: {message}" if key else message)
    value = re.search(r"[Vv]alue '(.*?)'(?: of type| could| is|,|$)", message)
    written = f"={shortened(value[1])}" if value else "=null" if "not Optional" in message else ""
    return ConfigError(f"{key}{written} must be {type_in_words(get_args(hint)[0] if is_entry else hint)}")


def missing_value(key: str) -> ConfigError:
    """Returns the error for an option that has no value."""
    return ConfigError(f"{key} has no value; give one: {key}=...")


def value_of_a_section(key: str, section: type) -> ConfigError:
    """Returns the error for a single value where a section's keys belong."""
    return ConfigError(f"{key} is a section: give its keys, such as {key}.{next(iter(get_type_hints(section)))}=...")


def type_in_words(hint: Any) -> str:
    """Describes a type: `a whole number or null`."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    if get_origin(hint) is list:
        return f"a list, each entry {type_in_words(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "a table"
    return " or ".join(type_in_words(part) for part in get_args(hint))


def composition_error(error: Exception, kind: type, overrides: list[str]) -> str:
    """Describes an error that composing a configuration raised, on one line.

    Args:
        error: What Hydra, OmegaConf or the YAML parser raised.
        kind: The type of the configuration.
        overrides: The command line.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options)
        suggestion = did_you_mean(option, error.options)
        choices = f"{suggestion} There are" if suggestion else "; there are"
        return f"{group}={shortened(option)} does not exist{choices}: {options}"
    if isinstance(error, OverrideParseException):
        reason = shortened(_first_line(error.message), MOST_QUOTED)
        if reason.startswith("Lexer"):  # an exception of Hydra's parser, which names no reason
            reason = "it has characters that have a meaning for Hydra"
        return f"{shortened(error.override)} cannot be read: {reason}; quote it: 'key=\"value\"'"
    known = _known_mistake(f"{text} {cause}", overrides)
    if known:
        return known
    unknown = re.search(r"Could not (?:override|delete) '(\S+?)'", text)
    if unknown and unknown[1] not in dotted_keys(kind):
        return _file_in(text) + str(unknown_key(unknown[1], kind))
    if isinstance(cause, OmegaConfBaseException):
        return _file_in(text) + str(omegaconf_error(cause, kind))
    if isinstance(error, HydraException | ValueError):
        return shortened(_first_line(text), MOST_QUOTED)
    if isinstance(error, YAMLError):
        return shortened(text, MOST_QUOTED)
    return shortened(f"the configuration cannot be composed: {type(error).__name__}: {text}", MOST_QUOTED)


def _known_mistake(text: str, overrides: list[str]) -> str | None:
    """What to say about messages of Hydra that can be recognised by their text."""
    if text.startswith("Error resolving interpolation"):
        missing = re.search(r"Interpolation key '(\w+)' not found", text)
        both = "model= and data= must both be chosen"
        return f"{missing[1]}= must be chosen" if missing and missing[1] not in ("model", "data") else both
    present = re.search(r"An item is already at '(\S+?)'", text)
    if present:
        return f"{present[1]} has a value already; write {present[1]}=... without +"
    absent = re.search(r"Could not delete from config. '(\S+?)' does not exist", text)
    if absent:
        return f"~{absent[1]} removes an option that has no value; leave it out"
    if text.startswith("Config group override must"):
        keys = (override.partition("=")[0] for override in overrides)
        groups = ", ".join(dict.fromkeys(key for key in keys if key.isidentifier() and (CONF / key).is_dir()))
        return f"a choice ({groups or 'hydra'}) must name one of the files in its folder of conf/, no other value"
    if text.startswith("Ambiguous value"):
        key, _, value = text.split("'")[1].partition("=")
        if Path(value).expanduser().exists():
            return f"{shortened(f'{key}={value}')} is read as several values: quote the name, '{key}=\"{value}\"'"
        return f"{shortened(f'{key}={value}')} gives several values: add -m to run each, or write a list as [a,b]"
    return None


def _file_in(text: str) -> str:
    """`model/mine.yaml: ` if Hydra's message names a file."""
    file = re.match(r"In '(\S+)': ", text)
    return f"{file[1]}.yaml: " if file else ""


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
