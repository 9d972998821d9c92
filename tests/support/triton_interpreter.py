"""Modules with Triton kernels, imported so that Triton's interpreter runs the kernels on the CPU."""

import importlib
from types import ModuleType

import pytest


def import_interpreted(name: str) -> ModuleType:
    """Import a module of kernels for a whole test module, which is skipped where they cannot be interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # Triton looks while it is imported, and later on
        pytest.importorskip("triton", reason="Triton is made for Linux alone")
        from tests.support.interpreted_kernels import interpreter_fault

        fault = interpreter_fault()
        if fault:
            pytest.skip(fault, allow_module_level=True)
        return importlib.import_module(name)
