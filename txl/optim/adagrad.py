"""Adagrad (Duchi et al. 2011), torch's own."""

from collections.abc import Sequence

import torch

from txl.config.optimizer import OptimizerConfig
from txl.optim.groups import ParameterGroup, TrainingOptimizer, torch_groups
from txl.optim.without_compiler import without_compiler


def build_adagrad(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> TrainingOptimizer:
    """Adagrad. It takes sparse gradients as they are."""
    assert config.eps is not None  # rules.py requires it
    return without_compiler(torch.optim.Adagrad)(
        torch_groups(groups), config.lr, weight_decay=config.weight_decay, eps=config.eps
    )
