"""The lengths under which a loss is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from txl.config.schema import RunConfig


@dataclass(frozen=True)
class Geometry:
    """The lengths under which a loss is computed, in tokens. Every perplexity is printed with them."""

    tgt_len: int
    mem_len: int
    ext_len: int = 0
    clamp_len: int = -1
    same_length: bool = False

    @staticmethod
    def from_record(values: Mapping[str, Any]) -> Geometry:
        """The lengths in a record of a validation or a test, which has other keys as well."""
        return Geometry(**{name: values[name] for name in Geometry.__dataclass_fields__})

    def __str__(self) -> str:
        text = f"tgt_len {self.tgt_len} mem_len {self.mem_len}"
        if self.ext_len:
            text += f" ext_len {self.ext_len}"
        return f"{text} clamp_len {self.clamp_len} same_length {str(self.same_length).lower()}"


def train_geometry(config: RunConfig, step: int | None = None) -> Geometry:
    """Returns the lengths of training: those of a step, or without one those with its memory."""
    t = config.train
    if step is not None and step < t.mem_from_step:
        return Geometry(t.tgt_len, 0, t.ext_len, t.clamp_len)  # same_length would leave a token only itself to see
    return Geometry(t.tgt_len, t.mem_len, t.ext_len, t.clamp_len, t.same_length)


def valid_geometry(config: RunConfig) -> Geometry:
    """Returns the lengths of validation.

    Its segments may be shorter than those of training. The memory grows by the difference, or ext_len does if there
    is no memory, so that validation sees as far back as training (as in the original).
    """
    t, tgt_len = config.train, config.valid.tgt_len
    spare = t.tgt_len - tgt_len
    if t.mem_len == 0:
        return Geometry(tgt_len, 0, t.ext_len + spare, t.clamp_len, t.same_length)
    return Geometry(tgt_len, t.mem_len + spare, t.ext_len, t.clamp_len, t.same_length)
