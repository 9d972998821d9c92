"""Reading metrics.jsonl, the record of a run. Importing this does not import torch."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TAIL_BYTES = 65536  # read at a time from the end of metrics.jsonl


def last_records(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The newest record of each kind in metrics.jsonl; {} where there is none.

    The file is read from its end, because a long run has a million records. Damaged lines are passed over.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in _lines_from_the_end(run / "metrics.jsonl"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if record["kind"] in kinds:
                found.setdefault(record["kind"], record)
        if len(found) == len(kinds):
            break
    return [found.get(kind, {}) for kind in kinds]


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        position, rest = file.seek(0, 2), b""
        while position > 0:
            begin = max(0, position - TAIL_BYTES)
            file.seek(begin)
            first, *lines = (file.read(position - begin) + rest).split(b"\n")
            yield from reversed(lines)
            position, rest = begin, first
        yield rest


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object per line. Damaged lines are left out; no file: no records."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
