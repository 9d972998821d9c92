"""How large a checkpoint will be, from the configuration alone."""

from txl.config.schema import RunConfig
from txl.plan.memory_estimate import memory_terms


def checkpoint_bytes(config: RunConfig, vocab_size: int, parameters: int) -> int:
    """Estimates the size of a checkpoint: weights, the optimizer's numbers, and the memories of the whole batch."""
    batch_size, full = config.train.batch_size, config.precision.name.parameter_bytes
    optimizer = memory_terms(config, vocab_size, parameters, 1, batch_size, 1)["optimizer"]
    mems = batch_size * config.model.n_layer * config.train.mem_len * config.model.d_model * full
    return int(parameters * full + optimizer + mems)
