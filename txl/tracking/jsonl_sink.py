"""metrics.jsonl and summary.json in the run folder: the complete record of a run, in strict JSON."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from txl.files import to_json, write_json
from txl.tracking.metrics_gaps import parse_record
from txl.tracking.rewind_file import drop_later_lines
from txl.tracking.sinks import TrackedRun


class JsonlSink:
    """Every record at once as a line of metrics.jsonl, so that a killed run has lost none of them.

    `sync` puts them on the disk as well: a checkpoint never outlives the records of the steps before it.
    """

    essential = True

    def __init__(self, folder: Path, run: TrackedRun):
        self._folder = folder
        self._file: IO[str] | None = None

    def rewind(self, step: int) -> None:
        """See Sink. Other kinds of lines than those of Sink.log are kept. The summary of an earlier end is removed."""
        self.close(0)
        (self._folder / "summary.json").unlink(missing_ok=True)
        path = self._folder / "metrics.jsonl"
        drop_later_lines(path, step, _is_kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink."""
        assert self._file is not None
        self._file.write(to_json({"kind": kind, "step": step} | dict(values) | {"time": round(time.time(), 3)}) + "\n")
        self._file.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink. A run that has a summary is finished, so all of its records are put on the disk before."""
        self.sync()
        write_json(self._folder / "summary.json", dict(values), indent=1)

    def sync(self) -> None:
        """See Sink."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self, exit_code: int) -> None:
        """See Sink."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_kept(line: bytes, step: int) -> bool:
    """Whether a line of metrics.jsonl is complete and not later than `step`. Test results are measured again."""
    record = parse_record(line)
    if record is None or record["kind"] == "test":
        return False
    return record["kind"] not in ("train", "valid") or record["step"] <= step
