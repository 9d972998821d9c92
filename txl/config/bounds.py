"""What is known of an option beside its type, in its dataclass: `n_layer: int = above_zero()`."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING

from txl.errors import refuse_unless, shown

BOUNDS, ADDED = "bounds", "added"  # keys in a field's metadata
_type_hints = functools.cache(get_type_hints)  # a fifth of the time of a plan, if every call resolved them again


@dataclass(frozen=True)
class Bounds:
    """A range of numbers from `lowest` to `most`."""

    lowest: float
    most: float = math.inf
    includes_lowest: bool = True
    includes_most: bool = True

    def contains(self, value: float) -> bool:
        """Whether a number lies in the range. NaN and infinity never do."""
        above = value >= self.lowest if self.includes_lowest else value > self.lowest
        below = value <= self.most if self.includes_most else value < self.most
        return above and below and value < math.inf

    def __str__(self) -> str:
        lower = f"{self.lowest:g} or more" if self.includes_lowest else f"above {self.lowest:g}"
        if self.most == math.inf:
            return f"must be {lower}"
        return f"must be {lower} and {'at most' if self.includes_most else 'below'} {shown(self.most)}"


def above_zero(default: Any = MISSING, most: float = math.inf, is_added: bool = False) -> Any:
    """A dataclass field whose value, unless it is None, lies above 0 and is at most `most`.

    `is_added`: it came after runs existed, as fields made by `added` did.
    """
    metadata = {BOUNDS: Bounds(0, most, includes_lowest=False)} | ({ADDED: True} if is_added else {})
    return field(default=default, metadata=metadata)


def zero_or_more(default: Any = MISSING, most: float = math.inf, is_added: bool = False) -> Any:
    """A dataclass field whose value, unless it is None, is 0 or more and at most `most`. `is_added`: see `added`."""
    metadata = {BOUNDS: Bounds(0, most)} | ({ADDED: True} if is_added else {})
    return field(default=default, metadata=metadata)


def below_one(default: Any = MISSING) -> Any:
    """A dataclass field whose value, unless it is None, is 0 or more and below 1."""
    return field(default=default, metadata={BOUNDS: Bounds(0, 1, includes_most=False)})


def added(default: Any) -> Any:
    """A dataclass field that came after runs existed. With `default`, a run computes what it computed without it.

    An option with that value is not part of the hash of a configuration, so existing runs keep their folder.
    """
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={ADDED: True})
    return field(default=default, metadata={ADDED: True})


def added_options(section: type, prefix: str = "") -> dict[str, Any]:
    """{dotted key: default} of all fields of a configuration that came after runs existed."""
    found: dict[str, Any] = {}
    hints = _type_hints(section)
    for option in fields(section):
        if is_dataclass(hints[option.name]):
            found |= added_options(hints[option.name], f"{prefix}{option.name}.")
        elif ADDED in option.metadata:
            factory = option.default_factory
            found[prefix + option.name] = option.default if factory is dataclasses.MISSING else factory()
    return found


def check_bounds(section: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first number of a configuration that lies outside of its range.

    Args:
        section: A configuration, or one of its sections.
        prefix: The section's own key with a dot, such as `train.`; empty for a whole configuration.
    """
    for key, value, bounds in _numbers(section, prefix):
        refuse_unless(value is None or bounds.contains(value), key, value, str(bounds))


def _numbers(section: Any, prefix: str) -> Iterator[tuple[str, Any, Bounds]]:
    for option in fields(section):
        value = getattr(section, option.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{prefix}{option.name}.")
        elif BOUNDS in option.metadata:
            yield prefix + option.name, value, option.metadata[BOUNDS]
