"""Read checkpoints that are pickles without running code from them.

A pickle names functions to call. Only the functions in BUILDERS are called: they make tensors, arrays and containers.
Objects of a few known classes (a vocabulary, command-line arguments) become records that only hold attributes. A pickle
that names anything else is refused before anything is called.
"""

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

from txl.errors import ConfigError

BUILDERS = {
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(("builtins", name) for name in "set frozenset list dict tuple int float bool str bytes bytearray".split()),
}


STORAGE = re.compile(r"(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage")


RECORDS = {"Vocab", "OpenAIVocab", "Namespace", "TransfoXLTokenizer"}


class _Record:
    """Stands for an object of a class in RECORDS: it has the object's attributes and no methods."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass  # entries of a subclass of dict or list are not needed


class _ForbiddenCall(ConfigError):
    """The pickle names a function that is not in BUILDERS."""


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in BUILDERS or (module in ("torch", "torch.cuda") and STORAGE.fullmatch(name)):
            return getattr(importlib.import_module(module), name)
        if name in RECORDS:
            return _Record
        raise _ForbiddenCall(f"it asks to call {module}.{name}, which no checkpoint needs: nothing was executed")


def load(file: Any, **_: Any) -> Any:
    return Unpickler(file, encoding="utf-8").load()


def load_checkpoint(path: Path) -> Any:
    """Read a file that torch.save or pickle wrote; tensors are on the CPU.

    Raises ConfigError if the file is not such a file, is damaged, or names a function that no checkpoint needs.
    """
    import sys

    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ModuleNotFoundError):
            pass
        try:  # torch's reader, with this module in pickle's place
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=sys.modules[__name__])
        except _ForbiddenCall:
            raise
        except (pickle.UnpicklingError, RuntimeError):
            with open(path, "rb") as file:
                return load(file)
    except _ForbiddenCall as error:
        raise ConfigError(f"{path} is not safe to read: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ConfigError(f"{path} is no checkpoint, or damaged: {reason}") from None
