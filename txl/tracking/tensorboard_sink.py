"""TensorBoard's event files in the run folder: tracking=tensorboard, then `tensorboard --logdir RUN_FOLDER`."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txl.files import to_json
from txl.tracking.sinks import TrackedRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RESULTS = ".results"  # how the file with the results after training ends


class TensorboardSink:
    """Scalars `train/*`, `valid/*` and `test/*` against the step; the configuration and the summary as text.

    Every record is flushed at once. A resumed run hides the records of later steps (the reader drops them) and deletes
    the results after training, which are measured again.
    """

    essential = False

    def __init__(self, folder: Path, run: TrackedRun):
        self._folder, self._settings = folder / "tensorboard", run.settings
        self._metrics: SummaryWriter | None = None
        self._results: SummaryWriter | None = None

    def rewind(self, step: int) -> None:
        """See Sink."""
        from torch.utils.tensorboard import SummaryWriter

        self.close(0)
        if step == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        for file in self._folder.glob(f"*{RESULTS}"):
            file.unlink()
        # The reader drops the earlier records from purge_step on.
        self._metrics = SummaryWriter(str(self._folder), purge_step=step + 1)
        self._add_text(self._metrics, "config", self._settings, step + 1)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink. Values that are no numbers are left out."""
        writer = self._results_writer() if kind == "test" else self._metrics
        assert writer is not None
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                writer.add_scalar(f"{kind}/{name}", value, step)
        writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._add_text(self._results_writer(), "summary", values, values.get("steps", 0))

    def sync(self) -> None:
        """See Sink. metrics.jsonl is the record that counts."""

    def close(self, exit_code: int) -> None:
        """See Sink."""
        for writer in (self._metrics, self._results):
            if writer is not None:
                writer.close()
        self._metrics = self._results = None

    def _results_writer(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        self._results = self._results or SummaryWriter(str(self._folder), filename_suffix=RESULTS)
        return self._results

    def _add_text(self, writer: "SummaryWriter", tag: str, values: Mapping[str, Any], step: int) -> None:
        """Show values as JSON in a block of code."""
        lines = to_json(dict(values), indent=1)
        writer.add_text(tag, f"```\n{lines}\n```", step)
        writer.flush()
