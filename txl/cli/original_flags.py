"""Answers to the flags of the original: what to write instead of `--batch_size 256`.

original_flags.json has an entry for every flag that docs/migration.md lists:

    here           the keys to write, with {} for the flag's value; missing if the flag has no counterpart
    example        a value, for the documents
    values         values that need other keys: a pattern of the value, and the keys
    takes_value    the flag has a value that is not part of `here`
    takes_several  the flag has any number of values
    reason         why it has no counterpart
"""

import json
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from txl.errors import shortened

DOCUMENT = "docs/migration.md"
MOST_KEYS = 160  # characters of what to write, in one message

SECTIONS = {  # where the flags of a script are looked up
    "train": ("train", "later", "evaluate"),
    "benchmark": ("train", "later", "evaluate"),
    "evaluate": ("evaluate", "later", "train"),
}


@dataclass(frozen=True)
class OriginalFlag:
    """A flag of the original, and what it is here."""

    here: str = ""
    example: str = ""
    values: dict[str, str] = field(default_factory=dict)
    takes_value: bool = False
    takes_several: bool = False
    reason: str = ""

    @property
    def has_value(self) -> bool:
        """Whether a value follows the flag."""
        return "{}" in self.here or self.takes_value or self.takes_several

    def keys(self, value: str | None) -> str:
        """Returns what to write for the flag with this value; None: the value is missing."""
        for pattern, keys in self.values.items():
            match = re.fullmatch(pattern, value or "")
            if match:
                return match.expand(keys)
        placed = "..." if value is None else value
        return " ".join(_filled(part, placed) for part in self.here.split(" "))


def _filled(part: str, value: str) -> str:
    """A key with the flag's value; quoted for a shell if it needs that."""
    if "{}" not in part:
        return part
    return shlex.quote(part.replace('"{}"', "{}").replace("{}", value))


@cache
def original_flags() -> dict[str, dict[str, OriginalFlag]]:
    """Returns the flags of the original's train.py, of its eval.py ("evaluate"), and of its scripts ("later")."""
    sections = json.loads(Path(__file__).with_name("original_flags.json").read_text(encoding="utf-8"))
    return {name: {flag: OriginalFlag(**entry) for flag, entry in flags.items()} for name, flags in sections.items()}


def answer_to_original_flags(arguments: list[str], script: str) -> str | None:
    """Returns what to tell somebody who writes flags of the original, on one line.

    Args:
        arguments: The whole command line.
        script: Whose arguments they are: train, evaluate or benchmark.

    Returns:
        The message, or None if no argument is a flag of the original.
    """
    flags, keys, reasons, elsewhere = [], [], [], []
    waiting = list(arguments)
    while waiting:
        spelling, equals, value = waiting.pop(0).partition("=")
        name = spelling.removeprefix("--").replace("-", "_")
        section = next((part for part in SECTIONS[script] if name in original_flags()[part]), None)
        if not spelling.startswith("--") or section is None:
            continue
        flag = original_flags()[section][name]
        values = [value] if equals else _take_values(waiting, flag)
        flags.append(spelling)
        written = flag.keys(",".join(values) if name == "percentiles" else " ".join(values) if values else None)
        if not written:
            reasons.append(f"{spelling}: {flag.reason}")
        elif section in (script, "later") or (script, section) == ("benchmark", "train"):
            keys.append(written)
        else:
            elsewhere.append(f"txl {section} {written}")
    if not flags:
        return None
    answers = [f"write {shortened(' '.join(keys), MOST_KEYS)}"] if keys else []
    answers += [f"write {shortened(one, MOST_KEYS)}" for one in elsewhere[:1]] if not keys else []
    answers += reasons[:1] if not answers else []
    are = "is a flag" if len(flags) == 1 else "are flags"
    return f"{shortened(', '.join(flags))} {are} of the original; {'; '.join(answers)} ({DOCUMENT})"


def _take_values(waiting: list[str], flag: OriginalFlag) -> list[str]:
    """Removes the values of a flag from the arguments that follow it."""
    values: list[str] = []
    while waiting and flag.has_value and (flag.takes_several or not values):
        if waiting[0].startswith("-") and not re.fullmatch(r"-[\d.]+", waiting[0]):
            break
        values.append(waiting.pop(0))
    return values
