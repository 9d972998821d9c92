"""The options of training, validation, the published evaluation, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainConfig:
    batch_size: int = MISSING  # sequences per optimizer step, all ranks together
    local_batch_size: int | None = None  # ... of one rank: overrides batch_size with so many times the ranks
    micro_batch_size: int | None = None  # sequences per device and forward; null: from the cap
    grad_accum_steps: int | None = None  # instead of micro_batch_size: forward passes per optimizer step
    first_rank_batch_size: int | None = None  # of the first rank, whose device has less room; null: as the others
    micro_batch_cap: dict[str, dict[str, int]] | None = MISSING  # hardware -> precision -> largest micro batch
    max_step: int = MISSING
    tgt_len: int = MISSING
    mem_len: int = MISSING
    ext_len: int = MISSING
    clamp_len: int = MISSING
    same_length: bool = MISSING
    clip: float = MISSING  # largest gradient norm; 0: no clipping
    clip_nonemb: bool = MISSING  # measure and clip all but the embedding's gradient
    swap_mem: bool = MISSING  # keep the memories in the host's RAM between their uses (GPUs)
    sampled_softmax: int | None = None  # words that a step's softmax is computed over, besides targets; null: all
    varlen: bool = MISSING  # segments of varying length, around tgt_len
    roll: bool = MISSING  # rotate every column by a random amount each epoch
    log_interval: int = MISSING
    time_limit_minutes: float | None = None  # of every start: save, stop cleanly; resume=auto goes on
    target_throughput: float | None = None  # tokens/s; missed: exit code 3
    target_perplexity: float | None = None  # of the final test; missed: exit code 3


@dataclass
class ValidConfig:
    enabled: bool = MISSING  # false: neither validate nor test, only train
    interval: int = MISSING
    batch_size: int = MISSING
    tgt_len: int = MISSING
    max_steps: int | None = None  # segments; null: the whole split


@dataclass
class EvaluationConfig:
    """The published evaluation block that goes with the recipe (longer memory, clamped distances)."""

    tgt_len: int = MISSING
    mem_len: int = MISSING
    ext_len: int = MISSING
    clamp_len: int = MISSING
    same_length: bool = MISSING
    batch_size: int = MISSING


@dataclass
class CheckpointConfig:
    interval: int = MISSING  # steps; 0: only at validation and at the end
    minutes: float | None = MISSING  # and whenever this long has passed
    keep: int = MISSING  # newest checkpoints kept besides the best one
    save_all: bool = MISSING  # keep every one


VARLEN_SHORTEST, VARLEN_EXCESS = 5, 15  # train.varlen: tokens at least; at most so many more than train.tgt_len


def longest_context(train: Mapping[str, Any]) -> int:
    """Tokens that training sees at once, at most: the rows of learned position tables.

    train: lengths by name, of a TrainConfig, or of a checkpoint that may be older than `varlen`.
    """
    longest: int = train["tgt_len"] + VARLEN_EXCESS * bool(train.get("varlen"))
    return longest + int(train["ext_len"]) + int(train["mem_len"])
