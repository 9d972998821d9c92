"""Reading metrics.jsonl, the record of a run. Importing this does not import torch."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from txl.files import DAMAGED_LINE, LINES_BYTES, open_for_reading, parse_json, read_lines
from txl.tracking.metrics_gaps import gap_note, is_whole, parse_record

MetricsLine = dict[str, Any]  # one line of metrics.jsonl

TAIL_BYTES = 65536  # read at a time from the end of metrics.jsonl
CURVE_POINTS = 1000  # of a training curve; a longer one is averaged down to about this number
TRAIN_LINE = b'{"kind": "train", '  # how JsonlSink begins a training line
LOSS = b'"loss": '
SPIKE = b'"spike": true'


def last_records(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The newest record of each kind in metrics.jsonl; {} where there is none.

    The file is read from its end, because a long run has a million records. Damaged lines are passed over.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in _lines_from_the_end(run / "metrics.jsonl"):
        if line.startswith(TRAIN_LINE) and ("train" in found or "train" not in kinds):
            continue  # not parsed: there may be a million of them behind the last validation
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = parse_json(line)
            if record["kind"] in kinds:
                found.setdefault(record["kind"], record)
        if len(found) == len(kinds):
            break
    return [found.get(kind, {}) for kind in kinds]


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError), open_for_reading(path) as file:
        position, rest = file.seek(0, 2), b""
        while position > 0:
            begin = max(0, position - TAIL_BYTES)
            file.seek(begin)
            first, *lines = (file.read(position - begin) + rest).split(b"\n")
            yield from reversed(lines)
            is_too_long = len(first) > LINES_BYTES or (rest == DAMAGED_LINE and not lines)
            position, rest = begin, DAMAGED_LINE if is_too_long else first
        yield rest


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object per line. Damaged lines are left out; no file: no records."""
    found = []
    with contextlib.suppress(OSError), open_for_reading(path) as file:
        for line in itertools.chain.from_iterable(read_lines(file)):
            with contextlib.suppress(ValueError):
                found.append(parse_json(line))
    return [record for record in found if isinstance(record, dict)]


# --------------------------------------------------------------------------- the whole file


@dataclass
class TrainCurve:
    """The training lines of a run, as points of a curve. A long run has many lines: neighbours share a point.

    All lists have one entry per point. `None` stands for what a line does not say.
    """

    step: list[int] = field(default_factory=list)  # of the last line of a point
    loss: list[float | None] = field(default_factory=list)  # nats per token: the mean; None: no line was finite
    tokens: list[int | None] = field(default_factory=list)  # trained on since the run began
    time: list[float | None] = field(default_factory=list)  # seconds since 1970
    speed: list[float | None] = field(default_factory=list)  # tokens per second
    not_finite: list[int] = field(default_factory=list)  # steps of lines whose loss was not finite
    spikes: list[int] = field(default_factory=list)  # steps of lines whose loss had suddenly risen
    last: MetricsLine | None = None  # the last line, in full


@dataclass
class Metrics:
    """What metrics.jsonl says."""

    train: TrainCurve = field(default_factory=TrainCurve)
    valid: list[MetricsLine] = field(default_factory=list)
    test: list[MetricsLine] = field(default_factory=list)
    damaged: int = 0  # lines that are no records; the last one does not count while it is being written
    gaps: list[tuple[int, int]] = field(default_factory=list)  # (first, last) step without a training line

    def missing(self, path: Path) -> list[str]:
        """One line for everything that a crash took from the file; empty for a file that is whole."""
        found = [gap_note(path, "train", first, last) for first, last in self.gaps]
        if self.damaged:
            lines = "1 line" if self.damaged == 1 else f"{self.damaged} lines"
            found.append(f"{path}: {lines} damaged by a crash, and left out")
        return found


def read_metrics(path: Path, points: int = CURVE_POINTS) -> Metrics:
    """Read a whole metrics.jsonl in a few seconds per million lines, and with little memory.

    Validations and tests are read in full. Of the training lines every loss is read; other values only once per
    point. Damaged lines (torn, or zeros after a crash of the machine) are counted and left out.

    Args:
        path: The file.
        points: The number of points of the training curve, at most about twice as many.

    Raises:
        OSError: The file cannot be read.
    """
    metrics = Metrics()
    waiting: list[bytes] = []
    with open_for_reading(path) as file:
        together = _lines_per_point(file, path.stat().st_size, points)
        for lines in read_lines(file):
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # it is being written
                if line.startswith(TRAIN_LINE):
                    waiting.append(line)
                    if len(waiting) == together:
                        _add_point(metrics, waiting)
                        waiting = []
                else:
                    _add_record(metrics, line)
    _add_point(metrics, waiting)
    return metrics


def _lines_per_point(file: IO[bytes], size: int, points: int) -> int:
    """How many training lines share a point, so that the file's lines make about `points` of them."""
    begin = file.read(TAIL_BYTES)
    file.seek(0)
    lines = size * begin.count(b"\n") // max(1, len(begin))
    return max(1, lines // points)


def _add_record(metrics: Metrics, line: bytes) -> None:
    """Add a line that does not begin as those of training do."""
    record = _parse(line)
    if record is None:
        metrics.damaged += 1
    elif record["kind"] == "train":  # written by something else than JsonlSink
        _add_point(metrics, [line])
    elif record["kind"] in ("valid", "test"):
        (metrics.valid if record["kind"] == "valid" else metrics.test).append(record)


def _add_point(metrics: Metrics, lines: list[bytes]) -> None:
    """Add training lines as one point of the curve."""
    curve, losses, whole = metrics.train, list[float](), list[bytes]()
    for line in lines:
        loss = loss_of_line(line)
        record = _parse(line) if loss is None else None
        if loss is None and record is None:
            metrics.damaged += 1
            continue
        whole.append(line)
        if SPIKE in line:
            curve.spikes += [one["step"] for one in [_parse(line)] if one]
        if record is not None:
            loss = record["loss"]
        if loss is not None:
            losses.append(loss)
        elif record is not None:
            curve.not_finite.append(record["step"])
    record = next(filter(None, map(_parse, reversed(whole))), None)
    if record is None:
        return
    _find_gaps(metrics, whole, record)
    curve.step.append(record["step"])
    curve.loss.append(math.fsum(losses) / len(losses) if losses else None)
    curve.tokens.append(record.get("tokens_seen"))
    curve.time.append(record.get("time"))
    curve.speed.append(record.get("tokens_per_second"))
    curve.last = record


def _find_gaps(metrics: Metrics, lines: list[bytes], last: MetricsLine) -> None:
    """Note steps that no line covers; lines say in `steps` how many steps they are the mean of.

    All lines are parsed only if their steps are fewer than those between the last point and this one.
    """
    before = metrics.train.last["step"] if metrics.train.last else None
    steps = last.get("steps")
    if type(steps) is not int or (before is not None and last["step"] - before == steps * len(lines)):
        return
    for record in filter(None, map(_parse, lines)):
        steps = record.get("steps")
        if before is not None and type(steps) is int and record["step"] - steps > before:
            metrics.gaps.append((before + 1, record["step"] - steps))
        before = record["step"]


def loss_of_line(line: bytes) -> float | None:
    """The loss of a training line without parsing the rest; None if this does not find a finite one."""
    begin = line.find(LOSS) + len(LOSS)
    if begin < len(LOSS):
        return None
    try:
        loss = float(line[begin : line.find(b",", begin)])
    except ValueError:
        return None
    return loss if math.isfinite(loss) else None


def _parse(line: bytes) -> MetricsLine | None:
    """A line as a record, whose loss is None if it is not finite; None if the line is damaged."""
    record = parse_record(line)
    if record is None or not is_whole(record):
        return None
    loss = record.get("loss")
    return record if loss is None or math.isfinite(loss) else record | {"loss": None}
