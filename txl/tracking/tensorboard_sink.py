"""TensorBoard's event files in the run folder: tracking=tensorboard, then `tensorboard --logdir RUN_FOLDER`."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txl.files import flatten, to_json
from txl.tracking.sinks import TrackedRun, series_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RESULTS = ".results"  # how the file with the results after training ends


class TensorboardSink:
    """Scalars against the step (`series_name`), configuration and summary as text, and hyper-parameters with results.

    Every record is flushed at once. A resumed run hides the records of later steps (the reader drops them) and deletes
    the results after training, which are measured again.
    """

    essential = False

    def __init__(self, folder: Path, run: TrackedRun):
        self._folder, self._settings = folder / "tensorboard", run.settings
        self._metrics: SummaryWriter | None = None
        self._results: SummaryWriter | None = None
        self._opened = 0  # second at which the file of the metrics was opened

    def rewind(self, step: int) -> None:
        """See Sink."""
        from torch.utils.tensorboard import SummaryWriter

        self.close(0)
        if step == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        for file in self._folder.glob(f"*{RESULTS}"):
            file.unlink()
        # The reader drops the earlier records from purge_step on.
        self._opened = int(time.time())
        self._metrics = SummaryWriter(str(self._folder), purge_step=step + 1)
        self._add_text(self._metrics, "config", self._settings, step + 1)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink. Values that are no numbers are left out."""
        writer = self._results_writer() if kind == "test" else self._metrics
        assert writer is not None
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                writer.add_scalar(series_name(kind, name), value, step)
        writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._add_text(self._results_writer(), "summary", values, values.get("steps", 0))
        self._add_hyper_parameters(values)

    def sync(self) -> None:
        """See Sink. metrics.jsonl is the record that counts."""

    def close(self, exit_code: int) -> None:
        """See Sink."""
        for writer in (self._metrics, self._results):
            if writer is not None:
                writer.close()
        self._metrics = self._results = None

    def _add_hyper_parameters(self, summary: Mapping[str, Any]) -> None:
        """A row of the tab HPARAMS: the configuration, and the losses that the run ended with."""
        from torch.utils.tensorboard.summary import hparams

        test = summary.get("test") or {}
        found = {"valid/best_loss": summary.get("best_valid_loss"), "test/final_loss": test.get("loss")}
        results = {name: value for name, value in found.items() if isinstance(value, int | float)}
        plain = {
            key: value if isinstance(value, bool | int | float | str) else to_json(value)
            for key, value in flatten(self._settings).items()
        }
        writer = self._results_writer()
        for part in hparams(plain, results):
            writer._get_file_writer().add_summary(part)
        for name, value in results.items():
            writer.add_scalar(name, value, summary.get("steps", 0))
        writer.flush()

    def _results_writer(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        # The reader takes files by their names, which begin with the second: this one must come after the metrics, or
        # the mark of a resumed run in them would drop the results.
        while self._results is None and int(time.time()) <= self._opened:
            time.sleep(0.05)
        self._results = self._results or SummaryWriter(str(self._folder), filename_suffix=RESULTS)
        return self._results

    def _add_text(self, writer: "SummaryWriter", tag: str, values: Mapping[str, Any], step: int) -> None:
        """Show values as JSON in a block of code."""
        lines = to_json(dict(values), indent=1)
        writer.add_text(tag, f"```\n{lines}\n```", step)
        writer.flush()
