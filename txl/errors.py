"""Mistakes in a configuration, and how a message shows their values: one line with key, value, rule and remedy.

And faults of a disk, which a user must hear of in the same way.
"""

import errno
import json
import os
import re
import shutil
from enum import Enum
from typing import Any

MOST_SHOWN = 60  # characters of a value in a message
LONGEST_LINE = 300  # characters of a line that says what is wrong

# What the system says when a disk is full, read-only or broken, or when a path cannot be used. Other errors of files
# are mistakes of this program.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EFBIG}
DISK_FAULTS |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE}


class ConfigError(ValueError):
    """A mistake that the user can correct. The message names the key, the value, the rule and the remedy."""


def disk_fault(error: BaseException) -> str | None:
    """Returns `FILE: No space left on device` if an error, or one that it followed, is a fault of a disk; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, shutil.Error):  # several files of a folder, as (source, target, reason)
            source, target, reason = seen.args[0][0]
            numbers = re.findall(r"Errno (\d+)", str(reason))
            if numbers and int(numbers[0]) in DISK_FAULTS:
                return f"{target}: {os.strerror(int(numbers[0]))}"
        if isinstance(seen, OSError) and seen.errno in DISK_FAULTS:
            return ": ".join(str(part) for part in (seen.filename, seen.strerror) if part)
        seen = seen.__cause__ or seen.__context__
    return None


def refuse_unless(ok: object, key: str, value: Any, rule: str) -> None:
    """Raises ConfigError unless a rule holds.

    Args:
        ok: Whether the rule holds.
        key: The dotted key, such as train.max_step.
        value: Its value.
        rule: The rest of the message after `key=value`; it ends with the remedy.

    Raises:
        ConfigError: The rule does not hold.
    """
    if not ok:
        raise ConfigError(f"{key}={shown(value)} {rule}")


def refuse_unused(used: object, key: str, value: Any, absent: Any, chosen: str) -> None:
    """Raises ConfigError if an option is given that does nothing beside another choice.

    Args:
        used: Whether the option does something.
        key: Its dotted key, such as data.max_bytes.
        value: Its value.
        absent: The value that means "not given".
        chosen: The choice beside which it does nothing, such as data.source=ids.

    Raises:
        ConfigError: The option does nothing, and `value` is another one than `absent`.
    """
    remedy = f"leave it out (where conf/ sets it: {key}={shown(absent)})"
    refuse_unless(used or value == absent, key, value, f"has no meaning for {chosen}; {remedy}")


def error_line(message: object) -> str:
    """Returns `error: ` and a message, as one line of at most LONGEST_LINE characters; it keeps beginning and end."""
    start = "error: "
    return start + shortened(str(message), LONGEST_LINE - len(start))


def shown(value: Any) -> str:
    """Returns a value as one would write it on the command line; a long one is shortened."""
    if isinstance(value, Enum):
        value = value.name
    if isinstance(value, str):
        return shortened(value)
    text = json.dumps(value, default=lambda item: item.name if isinstance(item, Enum) else str(item))
    return shortened(text.replace('"', "").replace(" ", ""))


def shortened(text: str, most: int = MOST_SHOWN) -> str:
    """Returns a text on one line, with `...` for its middle if it is longer than `most` characters."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if len(line) <= most:
        return line
    tail = (most - 3) // 3
    return f"{line[: most - 3 - tail]}...{line[len(line) - tail :]}"


def quoted(text: str, most: int = MOST_SHOWN) -> str:
    """Returns a text in quotes, with escapes for what cannot be printed, and shortened as `shortened` does it."""
    return shortened(repr(text if len(text) <= 2 * most else text[:most] + text[-most:]), most)


def any_of(words: list[str]) -> str:
    """Lists alternatives: ["a", "b", "c"] becomes `a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
