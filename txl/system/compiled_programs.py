"""The programs that torch.compile made in this process: how many there are, and how to forget them."""

import sys


def count_compiled_programs() -> int:
    """How many programs were compiled since the start of this process or `forget_compiled_programs`.

    Layers that share one program count once. A number that grows means that something was compiled again.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")  # importing it takes seconds; without it nothing was compiled
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def forget_compiled_programs() -> None:
    """Forget all programs and their count.

    All models of a process share one cache. torch compiles a function for eight kinds of inputs at most, and programs
    for a second size of the batch are made for any size, which is slower.
    """
    if "torch._dynamo.utils" in sys.modules:
        import torch

        torch.compiler.reset()
        sys.modules["torch._dynamo.utils"].counters.clear()
