"""Whether Triton's interpreter works here. It must have been chosen before triton was imported: TRITON_INTERPRET=1."""

import functools

import torch
import triton
import triton.language as tl


@triton.jit
def _count(out, n):
    for i in range(0, tl.minimum(n, 2)):
        tl.store(out + i, i + 1)


@functools.cache
def interpreter_fault() -> str | None:
    """Why kernels cannot be interpreted, or None. Triton 3.6 fails with NumPy 2.4: a bound of a loop is an array."""
    out = torch.zeros(2, dtype=torch.int64)
    try:
        _count[(1,)](out, 7)
    except Exception as error:
        return f"Triton {triton.__version__} cannot interpret kernels here ({type(error).__name__})"
    return None if out.tolist() == [1, 2] else f"Triton {triton.__version__} interprets kernels wrongly here"
