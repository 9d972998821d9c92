"""The optimizer of a configuration, found by its name."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.optim.groups import ParameterGroup, TrainingOptimizer, group_parameters


class OptimizerBuilder(Protocol):
    """What the module of an optimizer offers: makes it from its options and groups of parameters."""

    def __call__(self, config: OptimizerConfig, groups: Sequence[ParameterGroup], /) -> TrainingOptimizer:
        """The optimizer, before its first step."""


def build_optimizer(
    config: OptimizerConfig, named: Iterable[tuple[str, Tensor]], sparse: Sequence[Tensor] = ()
) -> TrainingOptimizer:
    """The optimizer that `config` describes.

    Args:
        config: its name and options.
        named: the model's `named_parameters()`.
        sparse: those of them whose gradients are sparse (sampled_softmax.py). Their rows without a gradient, and the
            optimizer states of these rows, stay unchanged.

    Returns:
        The optimizer, before its first step.

    Raises:
        ConfigError: a pattern of optimizer.lr_scale matches no parameter.
    """
    return optimizer_builder(config.name)(config, group_parameters(config.lr_scales(), named, sparse))


def optimizer_builder(name: OptimizerName) -> OptimizerBuilder:
    """The function build_NAME of the module txl/optim/NAME.py."""
    module = importlib.import_module(f"txl.optim.{name.name}")
    builder: OptimizerBuilder = getattr(module, f"build_{name.name}")
    return builder
