"""Stochastic gradient descent, torch's own."""

from collections.abc import Sequence

import torch

from txl.config.optimizer import OptimizerConfig
from txl.optim.groups import ParameterGroup, TrainingOptimizer, torch_groups
from txl.optim.without_compiler import without_compiler


def build_sgd(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> TrainingOptimizer:
    """SGD with momentum. Parameters whose gradients are sparse have no momentum."""
    assert config.momentum is not None  # rules.py requires it
    sparse = torch_groups(groups, lambda p: p.sparse, momentum=0.0)
    all_groups = torch_groups(groups, lambda p: not p.sparse) + sparse
    return without_compiler(torch.optim.SGD)(
        all_groups, config.lr, config.momentum, weight_decay=config.weight_decay, fused=not sparse
    )
