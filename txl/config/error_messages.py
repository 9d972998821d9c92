"""Errors of Hydra and OmegaConf as one line: dotted key, value, rule, remedy."""

import re
import sys
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
from yaml import YAMLError

from txl.config.did_you_mean import did_you_mean, dotted_keys, unknown_key
from txl.errors import ConfigError
from txl.files import CONF


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


def explain(error: Exception, kind: type) -> str:
    """Hydra's and OmegaConf's errors as one line."""
    from hydra.errors import MissingConfigException, OverrideParseException

    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options)
        return f"{group}={option} does not exist{did_you_mean(option, error.options)} There are: {options}"
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: {error.message.partition(chr(10))[0]}; quote it: 'key=\"value\"'"
    if text.startswith("Error resolving interpolation"):
        return "model= and data= must both be chosen"
    unknown = re.search(r"Could not (?:override|delete) '(\S+?)'", text)
    if unknown and unknown[1] not in dotted_keys(kind):
        return in_file(text) + str(unknown_key(unknown[1], kind))
    if isinstance(cause, OmegaConfBaseException):
        return in_file(text) + str(clear_error(cause, kind))
    if isinstance(error, YAMLError):
        return " ".join(text.split())
    if text.startswith("Config group override must"):
        keys = (arg.partition("=")[0] for arg in sys.argv[1:])
        groups = [key for key in keys if key.isidentifier() and (CONF / key).is_dir()]
        return f"a choice ({', '.join(groups)}) must name one of the files in its folder of conf/, no other value"
    if text.startswith("Ambiguous value"):
        return f"{text.split(chr(39))[1]} gives several values: add -m to run each, or write a list as [a,b]"
    return first_line(text)


def in_file(text: str) -> str:
    """`model/mine.yaml: ` where Hydra names a file."""
    file = re.match(r"In '(\S+)': ", text)
    return f"{file[1]}.yaml: " if file else ""


def first_line(text: str) -> str:
    return text.partition("\n")[0]
