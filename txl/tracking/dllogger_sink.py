"""A run's metrics in the format of NVIDIA's DLLogger: tracking.dllogger=FILE."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txl.tracking.dllogger import DLLoggerFile, is_kept_at, with_original_names
from txl.tracking.rewind_file import drop_later_lines
from txl.tracking.scores import score_from_loss
from txl.tracking.sinks import TrackedRun


class DlloggerSink:
    """Writes the file that tracking.dllogger names, in the run folder."""

    essential = False

    def __init__(self, folder: Path, run: TrackedRun):
        assert run.options.dllogger is not None
        self._path, self._run = folder / run.options.dllogger, run
        self._file: DLLoggerFile | None = None

    def rewind(self, step: int) -> None:
        """See Sink."""
        self.close(0)
        drop_later_lines(self._path, step, is_kept_at)
        self._file = DLLoggerFile(self._path, self._run.settings)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink. Test results are in the summary."""
        if kind != "test":
            self._append([step], with_original_names(kind, values))

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        loss, metric = values["best_valid_loss"], self._run.metric
        best = {"loss": loss, metric: score_from_loss(loss, metric)} if math.isfinite(loss) else {}
        trained = {"train_throughput": values["tokens_per_second"], "train_elapsed": values["train_seconds"] / 60}
        tested = with_original_names("test", values.get("test", {}))
        self._append([], tested | trained | with_original_names("valid", best))

    def sync(self) -> None:
        """See Sink. metrics.jsonl is the record that counts."""

    def close(self, exit_code: int) -> None:
        """See Sink."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, step: list[int], data: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.append(step, data)
