"""The hash that names a run folder: two configurations that compute the same have the same hash.

It is computed from the configuration alone.
"""

import os
from typing import Any

from txl.config.bounds import added_options
from txl.config.compose import to_dict
from txl.config.data import FILE_OPTIONS, VOCAB_FILE_OPTIONS
from txl.config.scheduler import SchedulerName
from txl.config.schema import RunConfig
from txl.files import flatten, sha256_of_json

# Keys and sections that cannot change the mathematics of training: a resume may change them, and they are not part of
# the hash.
NOT_HASHED = """
    name runs run_dir resume sample_tokens deterministic attention compile recompute dry_run nodes gpus recipe
    then preflight preflight_torch debug json
    hardware cluster tracking checkpoint evaluation
    train.local_batch_size train.micro_batch_size train.grad_accum_steps train.micro_batch_cap
    train.first_rank_batch_size train.log_interval train.time_limit_minutes
    train.target_throughput train.target_perplexity train.swap_mem valid.interval valid.enabled
    train.non_finite_steps train.on_divergence train.max_rollbacks train.rollback_lr
    data.path data.cache data.vocab_size data.shards data.typed_text
"""

# Where the text is. Part of the hash, but a resume may change it: the content of the text has a fingerprint.
FILES = [f"data.{option}" for option in (*FILE_OPTIONS, *VOCAB_FILE_OPTIONS)]


def run_defining_options(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the dotted keys that make two runs different, whatever their seeds. `values` are as from `to_dict`.

    The number of steps is not one of them unless the learning rate's curve ends there: otherwise a longer run
    continues where the shorter one stopped. The validation interval is one of them only if the schedule counts
    validations.
    """
    known = {"init_from": None} | added_defaults()  # older checkpoints do not have these
    keys = {key: value for key, value in (known | flatten(values)).items() if not changes_no_hash(key)}
    scheduler = values["scheduler"]["name"]
    length = keys.pop("scheduler.max_step", None) or keys["train.max_step"]
    del keys["train.max_step"], keys["seed"]
    if SchedulerName[scheduler].has_end:
        keys["scheduler.max_step"] = length
    if scheduler == SchedulerName.dev_perf.name:
        keys["valid.interval"] = values["valid"]["interval"]
    return keys


def config_hash(config: RunConfig) -> str:
    """Returns eight hex digits that name what a run computes."""
    keys = run_defining_options(to_dict(config))
    folder = config.data.path or ""
    keys |= {key: os.path.join(folder, keys[key]) for key in FILES if keys[key]}
    unchanged = added_defaults()
    keys = {key: value for key, value in keys.items() if key not in unchanged or value != unchanged[key]}
    return sha256_of_json(keys)[:8]


def added_defaults() -> dict[str, Any]:
    """The options that came after runs existed, with the values that change nothing, as from `to_dict`."""
    return {key: to_dict(default) for key, default in added_options(RunConfig).items()}


def changes_no_hash(key: str) -> bool:
    """Whether a key or a group, such as nodes or hardware, is no part of the hash."""
    return any(key == other or key.startswith(other + ".") for other in NOT_HASHED.split())
