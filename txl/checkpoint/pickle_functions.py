"""The functions and types that a pickle may name. Each function checks its arguments."""

import math
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class UnsafeFileError(ValueError):
    """The file asks for something that no checkpoint needs. Nothing was done."""


class DamagedFileError(ValueError):
    """The file is not what it should be."""


class Record:
    """The attributes of an object whose class is not needed. Entries of a subclass of dict or list are left out."""


def shown_text(text: str, limit: int = 80) -> str:
    """Text from a file as part of an error message: one short line that cannot control the terminal."""
    plain = "".join(character if character.isprintable() else "?" for character in text[: limit + 1])
    return plain if len(plain) <= limit else plain[:limit] + "..."


def is_size(value: Any) -> bool:
    """Whether a value from a file is a length or an offset that can exist."""
    return type(value) is int and 0 <= value < 2**62


def check_keys(keys: Iterable[Any]) -> None:
    """Only simple values can be keys: the hash of nested tuples takes time that doubles with every level."""
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= 16 else (key,)
        if not all(part is None or type(part) in (str, bytes, int, float, bool) for part in parts):
            raise DamagedFileError("it has a key that is no text or number")


# --------------------------------------------------------------------------- functions


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage. Its indices must lie inside of the storage, and it must not be larger."""
    valid = isinstance(storage, Tensor) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not valid or not all(is_size(n) for n in (offset, *size, *stride)) or not len(size) == len(stride) <= 64:
        raise DamagedFileError("it describes a tensor wrongly")
    elements = math.prod(size)
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if elements else 0
    if max(elements, end) > len(storage):
        raise DamagedFileError(f"a tensor of {elements:,} elements refers to a storage of {len(storage):,}")
    empty = torch.empty(0, dtype=storage.dtype, device=storage.device)
    return empty.set_(storage.untyped_storage(), storage.storage_offset() + offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise DamagedFileError("it describes a parameter wrongly")
    return data


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    pairs = list(items.items() if isinstance(items, dict) else items)
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _counter(items: Any = None) -> Counter[Any]:
    counts = dict(_ordered_dict(items or ()))
    return Counter(counts)


def _default_dict(factory: Any = None, *_: Any) -> defaultdict[Any, Any]:
    """An empty dict; its factory is not needed, because nothing is looked up that was not stored."""
    return defaultdict(None)


def _set_of(items: Any = ()) -> set[Any]:
    members = list(items)
    check_keys(members)
    return set(members)


def _frozen_set_of(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set_of(items))


def _bytes_of(text: Any = "", encoding: Any = "latin1", *_: Any) -> bytes:
    """Text -> bytes: how protocol 2 of pickle writes bytes."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DamagedFileError("it describes bytes wrongly")
    return text.encode("latin1")


def _bytearray_of(*args: Any) -> bytearray:
    return bytearray(_bytes_of(*args))


def _size_of(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items)


def _device(*_: Any) -> torch.device:
    return torch.device("cpu")


def _plain_dtype(name: Any, *_: Any) -> np.dtype[Any]:
    """numpy's type of numbers or bytes by its name, such as f4."""
    if not isinstance(name, str) or not re.fullmatch(r"[<|=]?([biuf][1248]|S\d{1,4})", name):
        raise DamagedFileError("it describes a type of numpy wrongly")
    return np.dtype(name)


def check_dtype_state(state: Any) -> None:
    """Raises DamagedFileError unless the state describes a plain number type of numpy."""
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|", "=") or state[2:5] != (None,) * 3:
        raise DamagedFileError("it describes a type of numpy wrongly")


def _empty_array(*_: Any) -> np.ndarray[Any, Any]:
    """What an array is before its content follows."""
    return np.empty(0)


def fill_array(array: np.ndarray[Any, Any], state: Any) -> None:
    """Give an array its content. `state`: (version, shape, type, whether columns come first, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise DamagedFileError("it describes an array wrongly")
    _, shape, dtype, columns_first, content = state
    valid = isinstance(shape, tuple) and len(shape) <= 32 and all(is_size(n) for n in shape)
    if not valid or not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise DamagedFileError("it describes an array wrongly")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DamagedFileError("an array has another size than its content")
    restore: Callable[[Any], None] = array.__setstate__
    restore((1, shape, dtype, bool(columns_first), content))


def _record(*_: Any) -> Record:
    """What a function would have made that is not needed."""
    return Record()


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise DamagedFileError("it describes a number of numpy wrongly")
    return np.frombuffer(content, dtype)[0]


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "Counter"): _counter,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _bytes_of,
    ("builtins", "bytes"): _bytes_of,
    ("builtins", "bytearray"): _bytearray_of,
    ("builtins", "set"): _set_of,
    ("builtins", "frozenset"): _frozen_set_of,
    ("torch", "Size"): _size_of,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"): _record,  # of torch 0.4
    ("re", "_compile"): _record,
    ("numpy", "dtype"): _plain_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}

# Types that are given to functions, and never called.
TYPES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, int, float, bool, str)},
    ("builtins", "long"): int,  # the names of Python 2, which protocol 2 writes
    ("builtins", "unicode"): str,
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in DTYPES.values()},
    **{(module, f"{name}Storage"): dtype for module in ("torch", "torch.cuda") for name, dtype in DTYPES.items()},
}
