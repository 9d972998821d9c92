"""Transformer-XL: train, evaluate and compare language models with a memory.

    import txl
    model = txl.load("runs/demo")                            docs/python.md
    model.score("recognize speech").nats
    for piece in model.generate("The history of", stream=True): ...

`import txl` is quick: torch is imported with the first use of `load`, `Model` or `Score`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from txl.version import __version__

# Every command imports this module first. Its syntax is that of earlier Pythons too.
if not (3, 11) <= sys.version_info[:2] <= (3, 13):  # Hydra 1.3 does not work with Python 3.14
    print(f"error: txl needs Python 3.11, 3.12 or 3.13; {sys.executable} is {sys.version.split()[0]}", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from txl.api import Model, Score, load

__all__ = ["Model", "Score", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The names of `txl.api`, imported when they are first asked for."""
    if name in __all__:
        return getattr(import_module("txl.api"), name)
    raise AttributeError(f"module 'txl' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `from txl import ...` offers."""
    return __all__
