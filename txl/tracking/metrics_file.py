"""metrics.jsonl: cutting the file back to a step."""

import json
import os
from collections.abc import Callable
from pathlib import Path


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
