"""Adam (Kingma & Ba 2015), torch's own."""

from collections.abc import Sequence

import torch

from txl.config.optimizer import OptimizerConfig
from txl.optim.combined import CombinedOptimizer
from txl.optim.groups import ParameterGroup, TrainingOptimizer, torch_groups
from txl.optim.without_compiler import without_compiler


def build_adam(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> TrainingOptimizer:
    """Adam; with SparseAdam for parameters whose gradients are sparse."""
    beta1, beta2 = config.betas
    assert config.eps is not None  # rules.py requires it
    dense, sparse = torch_groups(groups, lambda p: not p.sparse), torch_groups(groups, lambda p: p.sparse)
    adam = without_compiler(torch.optim.Adam)(
        dense, config.lr, (beta1, beta2), config.eps, config.weight_decay, fused=True
    )
    if not sparse:
        return adam
    sparse_class = without_compiler(torch.optim.SparseAdam)
    return CombinedOptimizer(dense=adam, sparse=sparse_class(sparse, config.lr, (beta1, beta2), config.eps))
