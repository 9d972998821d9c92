"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for the matrices of the layers.

AdamW (Loshchilov & Hutter 2019) updates everything else: embedding, softmax, positions, biases and gains. Both are
torch's own; Muon may update matrices of one shape together (batched_muon.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from txl.config.optimizer import OptimizerConfig
from txl.optim.batched_muon import BatchedMuon
from txl.optim.groups import NamedParameter, ParameterGroup, TrainingOptimizer, torch_groups
from txl.optim.without_compiler import without_compiler

# Parameters that hold several matrices, one below the other, and how many. Each matrix is orthogonalised on its own.
STACKED = {"attention.qkv.weight": 3}


def build_muon(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> TrainingOptimizer:
    """Muon for the matrices of the layers, AdamW for all other parameters.

    Muon's update is scaled to the size of AdamW's ("match_rms_adamw", Liu et al. 2025). So `lr` and `weight_decay` suit
    both. `lr_scale` sets them apart: the groups of embedding, softmax and biases are AdamW's.
    """
    beta1, beta2 = config.betas
    assert config.momentum is not None and config.eps is not None  # rules.py requires them
    views = {
        parameter.tensor: parameter.tensor.detach().chunk(_matrices_in(parameter.name))
        for group in groups
        for parameter in group.parameters
        if _is_layer_matrix(parameter)
    }
    matrices = torch_groups(groups, _is_layer_matrix, lr=config.lr)
    of_views = [group | {"params": [view for p in group["params"] for view in views[p]]} for group in matrices]
    muon = BatchedMuon(of_views, config.lr, config.weight_decay, config.momentum, adjust_lr_fn="match_rms_adamw")
    others = torch_groups(groups, lambda p: not _is_layer_matrix(p))
    adamw_class = without_compiler(torch.optim.AdamW)
    adamw = adamw_class(others, config.lr, (beta1, beta2), config.eps, config.weight_decay, fused=True)
    return MuonWithAdamW(matrices, views, muon, adamw)


class MuonWithAdamW:
    """Muon and AdamW used as one optimizer."""

    def __init__(
        self,
        matrix_groups: list[dict[str, Any]],
        views: Mapping[Tensor, Sequence[Tensor]],
        muon: torch.optim.Optimizer,
        adamw: torch.optim.Optimizer,
    ):
        """Combine the two.

        Args:
            matrix_groups: Muon's groups of whole parameters.
            views: the matrices in each of these parameters, as tensors that share its memory.
            muon: the optimizer of the views, in as many groups.
            adamw: the optimizer of all other parameters.
        """
        self.matrix_groups, self.views, self.muon, self.adamw = matrix_groups, views, muon, adamw

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of whole parameters: the trainer unscales their gradients and sets their rates."""
        return [*self.matrix_groups, *self.adamw.param_groups]

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for whole, group in zip(self.matrix_groups, self.muon.param_groups, strict=True):
            group["lr"] = whole["lr"]
        for matrix, views in self.views.items():
            for i, view in enumerate(views):
                view.grad = None if matrix.grad is None else matrix.grad.chunk(len(views))[i]
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for matrix in self.views:
            matrix.grad = None
        self.muon.zero_grad(set_to_none=True)  # those of the views
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of both, under the keys `muon` and `adamw`."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def _is_layer_matrix(parameter: NamedParameter) -> bool:
    return parameter.name.startswith("layers.") and parameter.tensor.dim() == 2


def _matrices_in(name: str) -> int:
    """How many matrices the parameter of this name holds."""
    return next((count for suffix, count in STACKED.items() if name.endswith(suffix)), 1)
