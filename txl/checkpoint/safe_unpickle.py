"""Read pickles without running code from them.

A pickle is a list of instructions for a machine with a stack, and some instructions call functions by name. This module
carries the instructions out itself. It calls only the functions of pickle_functions.py, which make tensors, arrays and
containers. Objects of a few known classes (RECORDS) become records that hold attributes and have no methods. A pickle
that names anything else is refused before anything is called.

A pickle cannot make this process use much more memory or time than its size suggests: a tensor is never larger than its
storage, keys are simple values, and containers are not nested deeply.
"""

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from txl.checkpoint.pickle_functions import (
    FUNCTIONS,
    TYPES,
    DamagedFileError,
    Record,
    UnsafeFileError,
    check_dtype_state,
    check_keys,
    fill_array,
    is_size,
    shown_text,
)

MAX_NESTING = 100  # containers within containers

# Classes whose objects are read as records of their attributes, whatever module they are from.
RECORDS = {"Vocab", "OpenAIVocab", "Namespace", "TransfoXLTokenizer"}

# Modules whose classes are all read as records. What is pickled with a tokenizer of transformers, or is part of a model
# that was saved whole, is a class by name there. It is never looked up, and no function of these modules is called.
RECORD_MODULES = re.compile(
    r"(torch\.nn\.(modules|parallel|backends)|sacremoses|tokenizers|transformers"
    r"|mem_transformer|proj_adaptive_softmax|utils|data_utils|vocabulary)(\.|$)"
)

FindStorage = Callable[[torch.dtype, str, int], Tensor]  # (type, key, number of elements) -> the elements, [n]

# Instructions that put their argument on the stack.
CONSTANTS = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
""".split()
OLD_TEXT = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # the str of Python 2

MARK = object()  # on the stack: where the elements of a container begin


def load_pickle(file: IO[bytes], find_storage: FindStorage | None = None, max_tensor_bytes: int = 0) -> Any:
    """The object in a pickle.

    Args:
        file: a file, or a map of one, at the beginning of the pickle.
        find_storage: gives the elements of the storages that the pickle refers to.
        max_tensor_bytes: the largest allowed size of all tensors together. They may share storages.

    Raises:
        UnsafeFileError: the pickle asks for something that no checkpoint needs.
        Exception: the pickle is damaged.
    """
    machine = _Machine(find_storage, max_tensor_bytes)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        instruction = INSTRUCTIONS.get(opcode.name)
        if instruction is None:
            raise UnsafeFileError(f"it holds the instruction {opcode.name}, which no checkpoint needs; nothing was run")
        instruction(machine, argument)
    value = machine.pop()
    check_nesting(value)
    return value


def check_nesting(value: Any) -> None:
    """Raises DamagedFileError if containers are nested deeper than MAX_NESTING, which could overflow the stack."""
    seen: set[int] = set()
    level = [value]
    for _ in range(MAX_NESTING):
        found: list[Any] = []
        for item in level:
            if isinstance(item, dict | list | tuple | Record) and id(item) not in seen:
                seen.add(id(item))
                inner = vars(item) if isinstance(item, Record) else item
                found += inner.values() if isinstance(inner, dict) else inner
        if not found:
            return
        level = found
    raise DamagedFileError(f"its containers are nested more than {MAX_NESTING} deep")


class _Machine:
    """The stack and the memory of a pickle that is being read."""

    def __init__(self, find_storage: FindStorage | None, max_tensor_bytes: int):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._find_storage, self._tensor_bytes_left = find_storage, max_tensor_bytes

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise DamagedFileError("it ends early")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """The elements above the last mark, which is removed with them."""
        position = len(self.stack) - 1
        while position >= 0 and self.stack[position] is not MARK:
            position -= 1
        if position < 0:
            raise DamagedFileError("it ends early")
        elements = self.stack[position + 1 :]
        del self.stack[position:]
        return elements

    def extend(self, elements: list[Any]) -> None:
        """Add elements to the list, set or dict (keys and values in turn) on top of the stack."""
        container = self.stack[-1]
        if isinstance(container, list):
            container.extend(elements)
        elif isinstance(container, set):
            container.update(_checked(elements))
        elif isinstance(container, dict):
            container.update(_pairs(elements))
        elif not isinstance(container, Record):
            raise DamagedFileError("it adds elements to something that holds none")

    def find(self, module: str, name: str) -> Any:
        """What the pickle means by a name: a function that it may call, or a type that such functions take."""
        module = {"__builtin__": "builtins"}.get(module, module)
        found = FUNCTIONS.get((module, name)) or TYPES.get((module, name))
        if found is None and (name in RECORDS or RECORD_MODULES.match(module)):
            return Record
        if found is None:
            full = f"{module}.{name}"
            raise UnsafeFileError(f"it names {shown_text(full)}, which no checkpoint needs; nothing was run")
        return found

    def call(self, function: Any, arguments: Any) -> None:
        """Push what a function returns, or a new record."""
        if function is Record:
            self.push(Record())
            return
        if not any(function is known for known in FUNCTIONS.values()):
            raise UnsafeFileError("it calls something that no checkpoint needs; nothing was run")
        if not isinstance(arguments, tuple):
            raise DamagedFileError("it calls a function without arguments")
        value = function(*arguments)
        if isinstance(value, Tensor):
            self._tensor_bytes_left -= value.nbytes
            if self._tensor_bytes_left < 0:
                raise DamagedFileError("its tensors are many times larger than the data that they share")
        self.push(value)

    def set_state(self, state: Any) -> None:
        """Give the object on top of the stack its attributes or content."""
        value = self.pop()
        if isinstance(value, Record) and isinstance(state, dict):
            value.__dict__.update({key: item for key, item in state.items() if isinstance(key, str)})
        elif isinstance(value, np.ndarray):
            fill_array(value, state)
        elif isinstance(value, np.dtype):
            check_dtype_state(state)
        elif not isinstance(value, Record | OrderedDict):  # attributes of an OrderedDict are not needed
            raise UnsafeFileError("it sets the state of something that no checkpoint holds; nothing was run")
        self.push(value)

    def storage(self, pid: Any) -> Any:
        """The storage that a tensor refers to, [n]. `pid`: ("storage", type, key, device, number of elements, part)."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class, in files older than torch 1.6: with its source code, which nobody needs
        if self._find_storage is None or not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise DamagedFileError("it refers to data that it does not hold")
        _, dtype, key, _, numel, *part = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str | int) or not is_size(numel):
            raise DamagedFileError("it describes a storage wrongly")
        storage = self._find_storage(dtype, str(key), numel)
        if part and part[0] is not None:  # in files older than torch 1.6
            _, offset, size = part[0]
            if not is_size(offset) or not is_size(size) or offset + size > len(storage):
                raise DamagedFileError("it describes a storage wrongly")
            return storage[offset : offset + size]
        return storage


# --------------------------------------------------------------------------- instructions

Instruction = Callable[[_Machine, Any], None]


def _pairs(keys_and_values: list[Any]) -> dict[Any, Any]:
    check_keys(keys_and_values[::2])
    return dict(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))


def _checked(elements: list[Any]) -> list[Any]:
    check_keys(elements)
    return elements


def _two(machine: _Machine) -> tuple[Any, Any]:
    """The two uppermost elements, the upper one last."""
    upper = machine.pop()
    return machine.pop(), upper


def _tuple_of(count: int) -> Instruction:
    def make(machine: _Machine, _: Any) -> None:
        elements = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(elements)))

    return make


def _pop(machine: _Machine, _: Any) -> None:
    """The uppermost element, which may be a mark."""
    machine.stack.pop()


def _duplicate(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.push(value)
    machine.push(value)


def _remember(machine: _Machine, index: Any) -> None:
    value = machine.pop()
    machine.push(value)
    machine.memo[len(machine.memo) if index is None else index] = value


def _recall(machine: _Machine, index: Any) -> None:
    machine.push(machine.memo[index])


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    machine.push(machine.find(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = _two(machine)
    if not isinstance(module, str) or not isinstance(name, str):
        raise DamagedFileError("it names a function wrongly")
    machine.push(machine.find(module, name))


def _new_object(machine: _Machine, _: Any) -> None:
    kind, _arguments = _two(machine)
    machine.call(kind, None)


def _new_object_with_keywords(machine: _Machine, _: Any) -> None:
    machine.pop()
    _new_object(machine, None)


def _instance(machine: _Machine, argument: Any) -> None:
    machine.pop_to_mark()
    _global(machine, argument)
    machine.call(machine.pop(), None)


def _object(machine: _Machine, _: Any) -> None:
    elements = machine.pop_to_mark()
    machine.call(elements[0] if elements else None, None)


def _nothing(machine: _Machine, _: Any) -> None:
    """Versions and frames say nothing about the object."""


INSTRUCTIONS: dict[str, Instruction] = {
    **dict.fromkeys(CONSTANTS, _Machine.push),
    **dict.fromkeys(OLD_TEXT, lambda machine, text: machine.push(text.encode("latin1").decode("utf-8"))),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(MARK),
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.pop_to_mark().clear(),
    "DUP": _duplicate,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_pairs(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: machine.extend(list(_two(machine))),
    "SETITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_checked(machine.pop_to_mark()))),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(*_two(machine)),
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": lambda machine, _: machine.set_state(machine.pop()),
    "PERSID": lambda machine, pid: machine.push(machine.storage(pid)),
    "BINPERSID": lambda machine, _: machine.push(machine.storage(machine.pop())),
}
