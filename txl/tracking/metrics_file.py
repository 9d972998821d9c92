"""metrics.jsonl and other records: strict JSON, and cutting a file back to a step."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path


def plain(value):
    """What JSON can hold, strictly: a number that is not finite becomes null, anything unknown its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def flat(values: dict, prefix: str = "") -> dict:
    """Nested keys joined by slashes, as wandb groups them."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


def write_json(path: Path, values: dict) -> None:
    """Atomically: a reader finds the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(plain(values), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def stays(line: bytes, step: int) -> bool:
    """Is this line of metrics.jsonl whole, and not from after `step`? Test results come again."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return False
    if not isinstance(values, dict):
        return False
    kind = values.get("kind")
    return kind != "test" and (kind not in ("train", "valid") or values.get("step", 0) <= step)


def cut_back(path: Path, step: int, stays: Callable[[bytes, int], bool] = stays) -> int:
    """Drop from a metrics file the lines that do not stay, so that a resumed run may write them again.

    Returns how many lines were dropped. The file is replaced in one move.
    """
    if not path.exists():
        return 0
    partial, dropped = path.with_name(path.name + ".partial"), 0
    with open(path, "rb") as old, open(partial, "wb") as new:
        for line in old:
            if stays(line, step):
                new.write(line)
            else:
                dropped += 1
        new.flush()
        os.fsync(new.fileno())
    os.replace(partial, path)
    return dropped
