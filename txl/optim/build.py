"""LAMB, the other optimizers, and the learning rate as a pure function of the step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.optim.lamb import Lamb


class DenseAndSparse:
    """Two optimizers as one: for gradients of whole tensors, and for those that hold some rows only."""

    def __init__(self, dense: torch.optim.Optimizer, sparse: torch.optim.Optimizer):
        self.dense, self.sparse = dense, sparse
        self.param_groups = [*dense.param_groups, *sparse.param_groups]

    def step(self) -> None:
        self.dense.step()
        self.sparse.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.dense.zero_grad(set_to_none)
        self.sparse.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"dense": self.dense.state_dict(), "sparse": self.sparse.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        self.param_groups = [*self.dense.param_groups, *self.sparse.param_groups]


def build_optimizer(
    config: OptimizerConfig, params: Iterable[Tensor], sparse: Sequence[Tensor] = ()
) -> torch.optim.Optimizer | DenseAndSparse:
    """`sparse`: those of `params` whose gradients hold some rows only (sampled.py). Other rows, and what the optimizer
    remembers of them, stay as they are; with SGD these tables have no momentum. rules.py refuses what cannot be so.
    """
    params, lr, decay = list(params), config.lr, config.weight_decay
    betas = tuple(config.betas)
    dense = [p for p in params if not any(p is table for table in sparse)]
    match config.name:
        case OptimizerName.lamb:
            return Lamb(params, lr, betas, config.eps, decay)
        case OptimizerName.adam:
            adam = torch.optim.Adam(dense, lr, betas, config.eps, decay, fused=True)
            if not sparse:
                return adam
            return DenseAndSparse(adam, torch.optim.SparseAdam(sparse, lr, betas, config.eps))
        case OptimizerName.sgd:
            groups = [{"params": dense}, {"params": sparse, "momentum": 0.0}] if sparse else dense
            return torch.optim.SGD(groups, lr, config.momentum, weight_decay=decay, fused=not sparse)
        case OptimizerName.adagrad:
            return torch.optim.Adagrad(params, lr, weight_decay=decay, eps=config.eps)
