"""What a crash of the machine does to metrics.jsonl: damaged lines, and steps without records.

Importing this does not import torch.
"""

from pathlib import Path
from typing import Any

from txl.files import open_for_reading, parse_json

KINDS = {  # what the records of a kind hold at least, besides `kind` and `step`
    "train": ("loss",),
    "valid": ("loss", "tgt_len", "mem_len", "batch_size"),
    "test": ("loss", "tgt_len", "mem_len", "batch_size"),
}


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl, or None if the line is damaged or not finished."""
    try:
        record = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
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


def missing_at_the_end(path: Path, expected: dict[str, int]) -> list[str]:
    """One line for every kind of record whose last ones are missing: a resumed run says so.

    Args:
        path: metrics.jsonl, cut back to the step that the run goes on from.
        expected: kind -> step of its last record, as the checkpoint says.
    """
    if not path.exists():
        return []
    with open_for_reading(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        records = [record for record in map(parse_record, file.readlines()) if record is not None]
    last = {record["kind"]: record["step"] for record in records if record["kind"] in expected}
    if not last:  # a run that goes on from another run's checkpoint has no records of the steps before
        return []
    if size <= TAIL_BYTES:
        last = dict.fromkeys(expected, 0) | last
    return [
        gap_note(path, kind, last[kind] + 1, step)
        for kind, step in expected.items()
        if kind in last and last[kind] < step
    ]


def gap_note(path: Path, kind: str, first: int, last: int) -> str:
    """A line about steps without records.

    Args:
        path: metrics.jsonl.
        kind: of the records: train, valid or test.
        first: the first step that has none.
        last: the last one.
    """
    return f"{path} has no {kind} records of steps {first} to {last}: they were lost in a crash"
