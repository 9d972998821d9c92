"""torch's optimizers without torch's compiler.

torch hides its optimizers from `torch.compile`: every call of their methods imports the compiler, which takes more
than a second at the start of a training. Here an optimizer is never part of a compiled program.
"""

import inspect
from typing import TypeVar

import torch

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

HIDDEN = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")  # methods that import the compiler


def without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """A subclass of an optimizer that computes the same, bit by bit, without importing torch's compiler."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in HIDDEN}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods | {"step": step})
