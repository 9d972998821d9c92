"""Several optimizers used as one."""

from typing import Any

import torch


class CombinedOptimizer:
    """Several optimizers, each for some of the parameters, used as one."""

    def __init__(self, **parts: torch.optim.Optimizer):
        """`parts`: the optimizers, by their keys in the state dict."""
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, by its key."""
        return {key: part.state_dict() for key, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for key, part in self.parts.items():
            part.load_state_dict(state[key])
