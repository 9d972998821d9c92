"""Compiles Triton kernels for GPUs that are not here. Run as a script, because it must not be interpreted:

    python tests/support/ahead_of_time.py 80 lamb softmax      # capability 8.0; these kernels

Prints a line for each: its name, the bytes of its program, the bytes of shared memory.
"""

import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from txl.model import half_softmax  # noqa: E402
from txl.optim import lamb_kernels  # noqa: E402

TYPES = {"addresses": "*i64", "tensor_of": "*i32", "first_of": "*i32", "sizes": "*i64"}
TYPES |= {"target": "*i64", "second": "*i64", "factor": "fp32", "weight": "fp32"}
TYPES |= dict.fromkeys("sums rates skip bias nats".split(), "*fp32")
TYPES |= dict.fromkeys("beta1 beta2 eps decay lr most".split(), "fp32")


def compile_kernel(kernel, capability: int, constants: dict, **types: str) -> None:
    """Compile one kernel and print its line; `types` of arguments that TYPES does not know, or not so."""
    known = TYPES | types
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    print(kernel.__name__, len(built.asm["cubin"]), built.metadata.shared, flush=True)


def main(capability: int, chosen: list[str]) -> None:
    blocks = {"CHUNK": lamb_kernels.CHUNK, "BLOCK": lamb_kernels.BLOCK}
    if "lamb" in chosen:
        compile_kernel(lamb_kernels._update_moments, capability, blocks, factor="*fp32")
        compile_kernel(lamb_kernels._rates, capability, {})
        compile_kernel(lamb_kernels._subtract_updates, capability, blocks)
    if "softmax" in chosen:
        for logits in ("*bf16", "*fp16"):
            constants = {"GRADIENT": True, "SECOND": True, "BLOCK": half_softmax.BLOCK}
            compile_kernel(half_softmax._gradient_of_row, capability, constants, logits=logits)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
