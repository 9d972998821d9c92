"""The ways to run a model with fixed weights (`runtime=`), with one surface for all of them."""

from typing import Any

from txl.config.geometry import Geometry
from txl.config.schema import Runtime
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram, make_program
from txl.evaluate.fixed_weights import with_fixed_weights
from txl.evaluate.kv_cache import CachedTransformerXL, GraphedTransformerXL, KeyValueCache
from txl.model.transformer import TransformerXL

RunnableModel = TransformerXL | CachedTransformerXL | FixedShapeProgram
Memory = Any  # what a runtime returned for the last segment; an empty list where a text starts


def choose_runtime(runtime: Runtime, model: TransformerXL, geometry: Geometry) -> Runtime:
    """The runtime that was asked for; for `auto` the cached one if the model can be cached, else the eager one."""
    if runtime is not Runtime.auto:
        return runtime
    return Runtime.cached if model.positions.facts.caches_keys and not geometry.ext_len else Runtime.eager


def build_runtime(
    model: TransformerXL,
    runtime: Runtime,
    geometry: Geometry,
    batch_size: int,
    program: str | None = None,
    trust_program: bool = False,
) -> RunnableModel:
    """The model in a runtime. Programs are made under the autocast that is active now.

    Args:
        model: the weights.
        runtime: any but `auto` (see `choose_runtime`).
        geometry: the lengths to read with; fixed for a program.
        batch_size: of this process; fixed for a program.
        program: file of a torchscript or export program (see `make_program`).
        trust_program: load the file even if this user did not write it.

    Returns:
        The model, or what runs it faster.

    Raises:
        ConfigError: if the runtime cannot run this model, these lengths, or on this device.
    """
    if runtime is Runtime.eager:
        return model
    device_type = next(model.parameters()).device.type
    if runtime is Runtime.cached:
        return CachedTransformerXL(with_fixed_weights(model, batch_size), geometry)
    if runtime is Runtime.graphs:
        if device_type != "cuda":
            raise ConfigError("runtime=graphs needs a GPU; use runtime=cached")
        return GraphedTransformerXL(with_fixed_weights(model, batch_size), geometry)
    step = CachedStep(model, geometry, runtime.name)
    return FixedShapeProgram(step, make_program(step, runtime, batch_size, program, trust_program))


def fork_memory(memory: Memory, count: int, geometry: Geometry) -> Memory:
    """The memory of one text as the memory of `count` texts, which are read with `geometry`.

    Only a program's memory cannot be forked: count is 1.
    """
    if isinstance(memory, KeyValueCache):
        return memory.fork(count, geometry)
    if isinstance(memory, tuple):
        assert count == 1, "a program is made for a fixed number of texts"
        return memory
    return [mem.expand(count, -1, -1) for mem in memory]


def allows_padding(model: RunnableModel) -> bool:
    """Whether tokens after a text change nothing in it; with absolute positions they move it away from the newest."""
    return not isinstance(model, TransformerXL) or model.positions.facts.caches_keys
