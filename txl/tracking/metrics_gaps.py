"""Reading metrics.jsonl with what a crash of the machine did to it: damaged lines, and steps without records.

Importing this does not import torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {  # what the records of a kind hold at least, besides `kind` and `step`
    "train": ("loss",),
    "valid": ("loss", "tgt_len", "mem_len", "batch_size"),
    "test": ("loss", "tgt_len", "mem_len", "batch_size"),
}


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl, or None if the line is damaged or not finished."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    has_step = type(record.get("step")) is int and record["step"] >= 0
    return record if has_step or record["kind"] not in KINDS else None


def is_whole(record: dict[str, Any]) -> bool:
    """Whether a record holds the numbers that every record of its kind has."""
    values = [record.get(key, "missing") for key in KINDS.get(record["kind"], ())]
    return all(value is None or isinstance(value, int | float) for value in values)


TAIL_BYTES = 1 << 18  # of the file's end that `missing_at_the_end` reads


class MetricsRecords:
    """The records of a metrics.jsonl, one after another. Afterwards `notes` says what is missing in the file.

    A record of a training says in `steps` how many steps it is the mean of. So it is known where records are missing.
    """

    def __init__(self, path: Path):
        """`path`: the file. It may be missing: then there are no records."""
        self.path = path
        self.damaged = 0  # lines; an unfinished last line is not counted
        self.gaps: list[tuple[int, int]] = []  # (first, last) step without a record
        self._last_step: int | None = None  # of the last train record

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the file. Raises OSError if it is there and cannot be read."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                record = parse_record(line)
                if record is not None and is_whole(record):
                    self._note_step(record)
                    yield record
                elif line.endswith(b"\n"):
                    self.damaged += 1

    def _note_step(self, record: dict[str, Any]) -> None:
        if record["kind"] != "train":
            return
        step, steps, before = record["step"], record.get("steps"), self._last_step
        if before is not None and type(steps) is int and step - steps > before:
            self.gaps.append((before + 1, step - steps))
        self._last_step = step

    def notes(self) -> list[str]:
        """One line for everything that is missing; empty for a file that is whole. Call it after reading."""
        found = [_gap_note(self.path, "train", first, last) for first, last in self.gaps]
        if self.damaged:
            lines = "1 line" if self.damaged == 1 else f"{self.damaged} lines"
            found.append(f"{self.path}: {lines} damaged by a crash, and left out")
        return found


def missing_at_the_end(path: Path, expected: dict[str, int]) -> list[str]:
    """One line for every kind of record whose last ones are missing: a resumed run says so.

    Args:
        path: metrics.jsonl, cut back to the step that the run goes on from.
        expected: kind -> step of its last record, as the checkpoint says.
    """
    if not path.exists():
        return []
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        records = [record for record in map(parse_record, file.readlines()) if record is not None]
    last = {record["kind"]: record["step"] for record in records if record["kind"] in expected}
    if not last:  # a run that goes on from another run's checkpoint has no records of the steps before
        return []
    if size <= TAIL_BYTES:
        last = dict.fromkeys(expected, 0) | last
    return [
        _gap_note(path, kind, last[kind] + 1, step)
        for kind, step in expected.items()
        if kind in last and last[kind] < step
    ]


def _gap_note(path: Path, kind: str, first: int, last: int) -> str:
    return f"{path} has no {kind} records of steps {first} to {last}: they were lost in a crash"
