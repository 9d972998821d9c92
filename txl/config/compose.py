"""Hydra's configuration to the types of schema.py, and between those and plain dicts."""

from __future__ import annotations

import math
import os
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints, overload

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from txl.config.choose_vocab import of_text
from txl.config.data import DataConfig, VocabKind
from txl.config.did_you_mean import unknown_key
from txl.config.error_messages import missing_value, omegaconf_error, type_in_words, value_of_a_section
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, is_multi_node
from txl.config.secrets import environment_value, refuse_passwords
from txl.errors import ConfigError, shown

# Options of earlier versions, by section; stored configurations may still have them.
REMOVED: dict[type, tuple[str, ...]] = {DataConfig: ("url", "sha256")}

TYPED_TEXT = {"text", "prompt"}  # keys whose values are text: no paths, and commas and brackets mean nothing there

Config = TypeVar("Config", bound=RunConfig | EvaluateConfig)
Section = TypeVar("Section")  # a configuration, or a section of one


# --------------------------------------------------------------------------- Hydra


def register_types() -> None:
    """Tells Hydra the types of the configurations, and OmegaConf the resolvers that `conf/` uses."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="train_types", node=RunConfig)
    store.store(name="evaluate_types", node=EvaluateConfig)
    store.store(name="benchmark_types", node=BenchmarkConfig)
    OmegaConf.register_new_resolver("by_recipe", _by_recipe, replace=True)
    OmegaConf.register_new_resolver("world_size", _world_size, replace=True)
    OmegaConf.register_new_resolver("is_machine", _is_machine, replace=True)
    OmegaConf.register_new_resolver("at_least", max, replace=True)
    OmegaConf.register_new_resolver("percent", _percent, replace=True)
    OmegaConf.register_new_resolver("width_factor", _width_factor, replace=True)
    OmegaConf.register_new_resolver("curve_steps", _curve_steps, replace=True)
    OmegaConf.register_new_resolver("for_steps", _for_steps, replace=True)
    OmegaConf.register_new_resolver("if_used", _if_used, replace=True)
    OmegaConf.register_new_resolver("metric_of", _metric_of, replace=True)
    OmegaConf.register_new_resolver("for_words", _for_words, replace=True)
    OmegaConf.register_new_resolver("of_text", of_text, replace=True)
    OmegaConf.register_new_resolver("oc.env", environment_value, replace=True)


def _by_recipe(single_node: Any, multi_node: Any, *, _root_: DictConfig) -> Any:
    """${by_recipe:0.01,0.02}: the published value for one node, or for several."""
    return multi_node if is_multi_node(_root_.recipe, _root_.nodes) else single_node


def _percent(share: float, whole: int) -> int:
    """${percent:5,${train.max_step}}: a share of a number, rounded."""
    return round(share * whole / 100)


def _width_factor(width: int, *, _root_: DictConfig) -> float:
    """${width_factor:128}: factor on a rate that was tuned at a width; 1 at this width, 0.5 at four times the width."""
    return round(math.sqrt(width / _root_.model.d_model), 4)


def _curve_steps(*, _root_: DictConfig) -> int:
    """${curve_steps:}: the step at which the learning rate's curve ends."""
    return int(_root_.scheduler.max_step or _root_.train.max_step)


def _for_steps(rate: float, steps: int, *, _root_: DictConfig) -> float:
    """${for_steps:0.008,2000}: a rate that was tuned for a number of steps; half of it for eight times as many."""
    return float(f"{rate * (steps / max(1, _curve_steps(_root_=_root_))) ** (1 / 3):.3g}")


def _if_used(option: str, value: Any, *, _root_: DictConfig) -> Any:
    """${if_used:momentum,0.85}: a value that counts only if the chosen optimizer has this option."""
    without: list[float] | None = [] if isinstance(value, list | ListConfig) else None
    return value if option in _root_.optimizer.name.facts.options else without


def _metric_of(kind: VocabKind) -> str:
    """${metric_of:${data.vocab}}: how a loss per token of this kind is reported."""
    return kind.facts.metric.name


def _for_words(value: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """${for_words:267735,null}: a value that holds only if the data set is read as words."""
    return value if _root_.data.vocab is VocabKind.word else otherwise


def _world_size(*, _root_: DictConfig) -> int:
    """${world_size:}: number of processes, as far as it is known without asking the machine."""
    return int(_root_.nodes * (_root_.gpus or _root_.hardware.gpus or 1))


def _is_machine(name: str, *, _root_: DictConfig) -> bool:
    """${is_machine:dgx1_8gpu_fp16}: whether this is one node of the machine that a published configuration names."""
    here = f"{_root_.hardware.name}_{_world_size(_root_=_root_)}gpu_{_root_.precision.name.name}"
    return bool(_root_.nodes == 1 and here == name)


@overload
def to_typed(cfg: DictConfig) -> RunConfig: ...
@overload
def to_typed(cfg: DictConfig, kind: type[Config]) -> Config: ...
def to_typed(cfg: DictConfig, kind: type[Any] = RunConfig) -> Any:
    """Converts Hydra's configuration to dataclasses. Keys and types are checked here, values by `rules.validate`.

    Raises:
        ConfigError: A key is unknown (Hydra lets `+key=value` pass), a type is wrong, or a value is missing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise omegaconf_error(error, kind) from None
    refuse_passwords(values, frozenset(TYPED_TEXT))
    return _build(kind, _expand_home(values), kind)


def _expand_home(values: Any) -> Any:
    """The values with the user's home folder in place of `~/`, which shells leave as it is behind `key=`.

    The texts of `data` are expanded where they are opened: a run's hash depends on how they are written.
    """

    def expand(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return value | {"cache": expand("cache", value["cache"])} if key == "data" else _expand_home(value)
        is_path = isinstance(value, str) and value.startswith("~/") and key not in TYPED_TEXT
        return os.path.expanduser(value) if is_path else value

    return {key: expand(key, value) for key, value in values.items()}


# --------------------------------------------------------------------------- plain dicts


def to_dict(config: Any) -> Any:
    """Converts dataclasses to dicts, lists, numbers and text, for YAML and JSON; enumerations become their names."""
    if is_dataclass(config):
        return {option.name: to_dict(getattr(config, option.name)) for option in fields(config)}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list):
        return [to_dict(value) for value in config]
    return config


@overload
def from_dict(values: Any) -> RunConfig: ...
@overload
def from_dict(values: Any, kind: type[Section]) -> Section: ...
def from_dict(values: Any, kind: type[Any] = RunConfig) -> Any:
    """The inverse of `to_dict`, for a stored configuration or a section of one.

    Options that this version no longer has are ignored. Keys and types are checked; rules are not, because they held
    when the configuration was written.

    Raises:
        ConfigError: The values are no configuration of this kind.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"a configuration is a table of keys, not {type(values).__name__}: the file is damaged")
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(kind), _without_removed(values, kind))
        return _build(kind, OmegaConf.to_container(cfg, throw_on_missing=True), kind)
    except OmegaConfBaseException as error:
        raise omegaconf_error(error, kind) from None


def _without_removed(values: Any, kind: type) -> Any:
    if not isinstance(values, dict):
        return values
    hints = get_type_hints(kind)
    return {
        key: _without_removed(value, hints[key]) if is_dataclass(hints.get(key)) else value
        for key, value in values.items()
        if key not in REMOVED.get(kind, ())
    }


def _build(cls: type[Any], values: Any, kind: type, prefix: str = "") -> Any:
    """A dataclass from the values of its fields; `prefix` is its place in the whole configuration, `kind`."""
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", kind)
    for option in fields(cls):
        needed = is_dataclass(hints[option.name]) or option.default == MISSING
        if needed and option.name not in values:  # `~seed` on the command line
            raise missing_value(f"{prefix}{option.name}")
    for key, value in values.items():
        if not is_dataclass(hints[key]):
            _check_container(f"{prefix}{key}", value, hints[key])
        elif not isinstance(value, dict):  # OmegaConf lets `train=${seed}` be anything
            raise value_of_a_section(f"{prefix}{key}", hints[key])
    return cls(
        **{
            key: _build(hints[key], value, kind, f"{prefix}{key}.") if is_dataclass(hints[key]) else value
            for key, value in values.items()
        }
    )


def _check_container(key: str, value: Any, hint: Any) -> None:
    """Raises ConfigError if a list, table or single value is another one: OmegaConf lets `${other_key}` be anything."""
    containers = {get_origin(one) for one in (hint, *get_args(hint))} & {list, dict}
    is_one = isinstance(value, list | dict)
    if value is not None and (is_one or containers) and not isinstance(value, tuple(containers)):
        raise ConfigError(f"{key}={shown(value)} must be {type_in_words(hint)}")
