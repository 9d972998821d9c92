"""From Hydra's configuration to the types of config.py, and between those and plain dicts."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from txl.config.data import DataConfig, VocabKind
from txl.config.did_you_mean import unknown_key
from txl.config.error_messages import clear_error
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, is_multi_node
from txl.errors import ConfigError

# Options of earlier versions, by section; stored configurations may still have them.
REMOVED = {DataConfig: ("url", "sha256")}

Config = TypeVar("Config", RunConfig, EvaluateConfig, BenchmarkConfig)


def register() -> None:
    """Make the types and the resolvers of `conf/` known to Hydra."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="train_types", node=RunConfig)
    store.store(name="evaluate_types", node=EvaluateConfig)
    store.store(name="benchmark_types", node=BenchmarkConfig)
    OmegaConf.register_new_resolver("by_recipe", _by_recipe, replace=True)
    OmegaConf.register_new_resolver("world_size", _world_size, replace=True)
    OmegaConf.register_new_resolver("is_machine", _is_machine, replace=True)
    OmegaConf.register_new_resolver("at_least", max, replace=True)
    OmegaConf.register_new_resolver("metric_of", _metric_of, replace=True)
    OmegaConf.register_new_resolver("for_words", _for_words, replace=True)


def _by_recipe(single_node: Any, multi_node: Any, *, _root_: DictConfig) -> Any:
    return multi_node if is_multi_node(_root_.recipe, _root_.nodes) else single_node


def _metric_of(kind: VocabKind) -> str:
    return "ppl" if kind in (VocabKind.word, VocabKind.bpe) else "bpc"


def _for_words(value: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """What is known of a data set as words holds for nothing else that it may be read as."""
    return value if _root_.data.vocab is VocabKind.word else otherwise


def _world_size(*, _root_: DictConfig) -> int:
    return _root_.nodes * (_root_.gpus or _root_.hardware.gpus or 1)


def _is_machine(name: str, *, _root_: DictConfig) -> bool:
    """Whether this is the machine that the published configurations call `dgx1_8gpu_fp16`, and one of it."""
    here = f"{_root_.hardware.name}_{_world_size(_root_=_root_)}gpu_{_root_.precision.name.name}"
    return _root_.nodes == 1 and here == name


def to_typed(cfg: DictConfig, kind: type[Config] = RunConfig) -> Config:
    """Hydra's configuration -> dataclasses: keys and types are checked here, values by `rules.validate`.

    `+key=value` gets past Hydra's own check; here it is a ConfigError as any other misspelt key.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise clear_error(error, kind) from None
    return _build(kind, values, kind)


def to_dict(config: Any) -> Any:
    """Dataclasses -> plain dicts, lists, numbers and text, for YAML and JSON; enumerations as their names."""
    if is_dataclass(config):
        return {name: to_dict(getattr(config, name)) for name in config.__dataclass_fields__}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list):
        return [to_dict(value) for value in config]
    return config


def without_removed(values: Any, kind: type) -> Any:
    """Drops the options that this version no longer has from a stored configuration, or from a section of one."""
    if not isinstance(values, dict):
        return values
    hints = get_type_hints(kind)
    return {
        key: without_removed(value, hints[key]) if is_dataclass(hints.get(key)) else value
        for key, value in values.items()
        if key not in REMOVED.get(kind, ())
    }


def from_dict(values: dict[str, Any], kind: type[Config] = RunConfig) -> Config:
    """The inverse of `to_dict`: keys and types are checked, rules are not (they held where it was written)."""
    if not isinstance(values, dict):
        raise ConfigError(f"a configuration is a table of keys, not {type(values).__name__}: the file is damaged")
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(kind), without_removed(values, kind))
        return _build(kind, OmegaConf.to_container(cfg, throw_on_missing=True), kind)
    except OmegaConfBaseException as error:
        raise clear_error(error, kind) from None


def _build(cls: type, values: dict[str, Any], kind: type, prefix: str = "") -> Any:
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", kind)
    return cls(
        **{
            key: _build(hints[key], value, kind, f"{prefix}{key}.") if is_dataclass(hints[key]) else value
            for key, value in values.items()
        }
    )
