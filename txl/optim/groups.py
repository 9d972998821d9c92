"""Parameters in groups with their own learning rate, and what the trainer expects of an optimizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from txl.errors import ConfigError

OTHERS = "others"  # name of the group whose parameters no pattern of optimizer.lr_scale matches


class TrainingOptimizer(Protocol):
    """What the trainer uses. Every optimizer of torch has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Each with `params`, `lr` and, if optimizer.lr_scale is used, `lr_scale`."""

    def step(self) -> object:
        """Update all parameters that have a gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """The inverse of `state_dict`."""


@runtime_checkable
class ScalesGradients(Protocol):
    """An optimizer that can multiply all gradients by a factor while it reads them. Clipping then costs nothing."""

    gradient_factor: Tensor | None  # for the next step only


class NamedParameter(NamedTuple):
    """A parameter of the model."""

    name: str  # in the model's state dict
    tensor: Tensor
    sparse: bool  # whether its gradients are sparse


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate."""

    name: str  # the pattern in optimizer.lr_scale, or OTHERS
    lr_scale: float  # factor on the learning rate
    parameters: list[NamedParameter]


def group_parameters(
    lr_scale: Mapping[str, float], named: Iterable[tuple[str, Tensor]], sparse: Sequence[Tensor] = ()
) -> list[ParameterGroup]:
    """Group a model's parameters by name.

    Args:
        lr_scale: factor on the learning rate by pattern, such as {"embedding.*": 0.5}. The first pattern that
            matches a parameter's name counts. Wildcards are those of the shell: `*`, `?`, `[ab]`.
        named: the model's `named_parameters()`.
        sparse: those of them whose gradients are sparse.

    Returns:
        One group for each pattern, and the group OTHERS if parameters are left. Parameters keep their order.

    Raises:
        ConfigError: a pattern gets no parameter.
    """
    groups = {pattern: ParameterGroup(pattern, scale, []) for pattern, scale in lr_scale.items()}
    groups[OTHERS] = ParameterGroup(OTHERS, 1.0, [])
    for name, tensor in named:
        pattern = next((pattern for pattern in lr_scale if fnmatchcase(name, pattern)), OTHERS)
        is_sparse = any(tensor is table for table in sparse)
        groups[pattern].parameters.append(NamedParameter(name, tensor, is_sparse))
    for pattern in lr_scale:
        if not groups[pattern].parameters:
            raise ConfigError(
                f"optimizer.lr_scale: {pattern} matches no parameter, or only those of earlier patterns; "
                "use names such as embedding.* or layers.*.attention.qkv.weight"
            )
    return [group for group in groups.values() if group.parameters]


def torch_groups(
    groups: Sequence[ParameterGroup],
    select: Callable[[NamedParameter], bool] = lambda parameter: True,
    **options: Any,
) -> list[dict[str, Any]]:
    """The groups as torch's optimizers take them: {"params": [...], "name": ..., "lr_scale": ...}.

    Without optimizer.lr_scale, name and scale are left out, so that checkpoints look as they did before it existed.

    Args:
        groups: from `group_parameters`.
        select: takes only some of the parameters. Groups without any are left out.
        options: further entries of every group, such as momentum.

    Returns:
        The groups, as dicts.
    """
    plain = [group.name for group in groups] == [OTHERS]
    found = []
    for group in groups:
        params = [parameter.tensor for parameter in group.parameters if select(parameter)]
        label = {} if plain else {"name": group.name, "lr_scale": group.lr_scale}
        if params:
            found.append({"params": params} | label | options)
    return found


def check_state_shapes(optimizer: Any) -> None:
    """Raises ValueError if what an optimizer keeps of a parameter has another shape than the parameter.

    `load_state_dict` accepts it, and the first step would fail, or compute something else.
    """
    for part in _torch_optimizers(optimizer):
        for parameter in (parameter for group in part.param_groups for parameter in group["params"]):
            for name, value in part.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                    shapes = f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
                    raise ValueError(f"the optimizer's {name} is {shapes}")


def _torch_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The optimizer, or those that it combines."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return [optimizer]
    inner = [
        part for value in vars(optimizer).values() for part in (value.values() if isinstance(value, dict) else [value])
    ]
    return [part for part in inner if isinstance(part, torch.optim.Optimizer)]
