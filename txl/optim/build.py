"""The optimizer of a configuration."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.optim.lamb import Lamb


class DenseAndSparse:
    """Two optimizers used as one: the first takes dense gradients, the second sparse ones."""

    def __init__(self, dense: torch.optim.Optimizer, sparse: torch.optim.Optimizer):
        self.dense, self.sparse = dense, sparse
        self.param_groups = [*dense.param_groups, *sparse.param_groups]

    def step(self) -> None:
        """As in torch's optimizers."""
        self.dense.step()
        self.sparse.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch's optimizers."""
        self.dense.zero_grad(set_to_none)
        self.sparse.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of both, under the keys `dense` and `sparse`."""
        return {"dense": self.dense.state_dict(), "sparse": self.sparse.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        self.param_groups = [*self.dense.param_groups, *self.sparse.param_groups]


def build_optimizer(
    config: OptimizerConfig, params: Iterable[Tensor], sparse: Sequence[Tensor] = ()
) -> torch.optim.Optimizer | DenseAndSparse:
    """The optimizer that `config` describes.

    `sparse` are those of `params` whose gradients are sparse (sampled_softmax.py). Rows without a gradient, and their
    optimizer states, stay unchanged. With SGD these tables have no momentum. rules.py refuses combinations that cannot
    work.
    """
    params, lr, decay = list(params), config.lr, config.weight_decay
    dense = [p for p in params if not any(p is table for table in sparse)]
    match config.name:
        case OptimizerName.lamb:
            return Lamb(params, lr, _betas(config), _eps(config), decay)
        case OptimizerName.adam:
            adam = torch.optim.Adam(dense, lr, _betas(config), _eps(config), decay, fused=True)
            if not sparse:
                return adam
            return DenseAndSparse(adam, torch.optim.SparseAdam(sparse, lr, _betas(config), _eps(config)))
        case OptimizerName.sgd:
            assert config.momentum is not None  # rules.py requires it
            groups: list[dict[str, Any]] = [{"params": dense}]
            if sparse:
                groups.append({"params": list(sparse), "momentum": 0.0})
            return torch.optim.SGD(groups, lr, config.momentum, weight_decay=decay, fused=not sparse)
        case OptimizerName.adagrad:
            return torch.optim.Adagrad(params, lr, weight_decay=decay, eps=_eps(config))


def _betas(config: OptimizerConfig) -> tuple[float, float]:
    beta1, beta2 = config.betas
    return beta1, beta2


def _eps(config: OptimizerConfig) -> float:
    assert config.eps is not None  # rules.py requires it
    return config.eps
