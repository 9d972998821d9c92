"""The options of training, validation, the published evaluation, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from txl.config.bounds import above_zero, zero_or_more

# Larger numbers are mistakes: no machine could compute with them.
MOST_STEPS = 10**12
MOST_SEQUENCES = 10**6  # in a batch
MOST_TOKENS = 10**6  # in a segment or a memory

VARLEN_SHORTEST = 5  # train.varlen: a segment has at least this many tokens,
VARLEN_EXCESS = 15  # and at most this many more than train.tgt_len


class OnDivergence(Enum):
    """The choices of `train.on_divergence`: what follows when loss, gradient or weights are not finite any more."""

    stop = "stop"  # the run ends; its last finite checkpoint is kept
    rollback = "rollback"  # it goes back to that checkpoint, and on with later data and a lower learning rate


@dataclass
class TrainConfig:
    """The training loop: batch, lengths, and what a step does."""

    batch_size: int = above_zero(most=MOST_SEQUENCES)  # sequences per optimizer step, all ranks together
    local_batch_size: int | None = above_zero(None, most=MOST_SEQUENCES)  # ... of one rank; replaces batch_size
    micro_batch_size: int | None = above_zero(None, most=MOST_SEQUENCES)  # per device and forward; null: from the cap
    grad_accum_steps: int | None = above_zero(None, most=MOST_SEQUENCES)  # forwards per step, for micro_batch_size
    first_rank_batch_size: int | None = above_zero(None, most=MOST_SEQUENCES)  # null: the same as other ranks'
    micro_batch_cap: dict[str, dict[str, int]] | None = MISSING  # hardware -> precision -> largest micro batch
    max_step: int = above_zero(most=MOST_STEPS)  # optimizer steps of the whole training
    tgt_len: int = above_zero(most=MOST_TOKENS)  # tokens of a segment
    mem_len: int = zero_or_more(most=MOST_TOKENS)  # tokens of memory
    mem_from_step: int = zero_or_more(0, most=MOST_STEPS, is_added=True)  # steps before it read without memory
    ext_len: int = zero_or_more(most=MOST_TOKENS)  # tokens before each segment that are read again
    clamp_len: int = MISSING  # larger distances count as this one; -1: no clamping
    same_length: bool = MISSING  # every token attends to exactly mem_len tokens before it
    clip: float = zero_or_more()  # largest gradient norm; 0: no clipping
    clip_nonemb: bool = MISSING  # leave the embedding's gradient out of the norm and unclipped
    swap_mem: bool = MISSING  # keep memories in the host's RAM between steps (GPUs)
    sampled_softmax: int | None = above_zero(None)  # words drawn for a step's softmax; null: the whole vocabulary
    # Factor on the loss of predicting the token after the next one as well, at the first step (multi-token prediction)
    multi_token_weight: float = zero_or_more(0.0, is_added=True)
    multi_token_steps: int = zero_or_more(0, most=MOST_STEPS, is_added=True)  # in which multi_token_weight falls to 0
    varlen: bool = MISSING  # draw segments' lengths around tgt_len
    roll: bool = MISSING  # rotate every column by a random amount each epoch
    # Every epoch reads pieces of this many tokens in another order; null: the text from its beginning to its end
    shuffle_len: int | None = above_zero(None, most=MOST_TOKENS, is_added=True)
    log_interval: int = above_zero(most=MOST_STEPS)  # steps between two records
    time_limit_minutes: float | None = above_zero(None)  # of one start: save and stop; resume=auto continues
    non_finite_steps: int = above_zero(1, most=MOST_STEPS)  # in a row: they end the run; those before are skipped
    on_divergence: OnDivergence = OnDivergence.stop  # what follows when a loss is not finite
    max_rollbacks: int = above_zero(3, most=MOST_STEPS)  # of one run, with on_divergence=rollback
    rollback_lr: float = above_zero(0.5, most=1)  # a rollback multiplies the learning rate by it
    target_throughput: float | None = above_zero(None)  # tokens/s; exit code 3 if it is missed
    target_perplexity: float | None = above_zero(None)  # of the final test; exit code 3 if it is missed

    def multi_token_weight_at(self, step: int) -> float:
        """`multi_token_weight` after so many steps: it falls in a line to 0."""
        left = max(0, self.multi_token_steps - step)
        return self.multi_token_weight * left / self.multi_token_steps if left else 0.0


@dataclass
class ValidConfig:
    """Validation during training, and the test at its end."""

    enabled: bool = MISSING  # false: neither validate nor test
    interval: int = above_zero(most=MOST_STEPS)  # steps between two validations
    batch_size: int = above_zero(most=MOST_SEQUENCES)  # sequences side by side
    tgt_len: int = above_zero(most=MOST_TOKENS)  # tokens of a segment; with its memory as many as in training
    max_steps: int | None = above_zero(None)  # segments; null: the whole split


@dataclass
class EvaluationConfig:
    """The evaluation that was published with the recipe: longer memory, clamped distances."""

    tgt_len: int = above_zero(most=MOST_TOKENS)  # tokens of a segment
    mem_len: int = zero_or_more(most=MOST_TOKENS)  # tokens of memory
    ext_len: int = zero_or_more(most=MOST_TOKENS)  # tokens before each segment that are read again
    clamp_len: int = MISSING  # larger distances count as this one; -1: no clamping
    same_length: bool = MISSING  # every token attends to exactly mem_len tokens before it
    batch_size: int = above_zero(most=MOST_SEQUENCES)  # sequences side by side


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    interval: int = zero_or_more(most=MOST_STEPS)  # steps; 0: only at validation and at the end
    minutes: float | None = above_zero()  # save also when this long has passed since the last one
    keep: int = above_zero()  # number of newest checkpoints that are kept besides the best one
    save_all: bool = MISSING  # keep all of them


def longest_context(train: Mapping[str, Any]) -> int:
    """Returns how many tokens training sees at once, at most: the number of rows of learned position tables.

    `train` holds lengths by name: those of a TrainConfig, or of a checkpoint that may be older than `varlen`.
    """
    longest: int = train["tgt_len"] + VARLEN_EXCESS * bool(train.get("varlen"))
    return longest + int(train["ext_len"]) + int(train["mem_len"])
