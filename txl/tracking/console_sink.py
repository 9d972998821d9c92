"""Lines for people: steps, framed validations, and a progress bar. They fit into 80 columns."""

import logging
import logging.handlers
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txl.config.geometry import Geometry
from txl.errors import disk_fault
from txl.files import short_path
from txl.system.console import ProgressBar, is_terminal, log_to_console, printable
from txl.tracking.sinks import TrackedRun

log = logging.getLogger(__name__)

FRAME_WIDTH = 79  # columns of the lines that frame a validation or a test


class ConsoleSink:
    """Writes lines to the logs of this rank.

    On every rank that is logs/rank_N.log. On rank 0 it is also train.log and the console, which shows a progress bar
    if it is a terminal. Whatever else this package logs goes to the same places. Without a folder there are no files.
    """

    essential = False

    def __init__(self, folder: Path | None, run: TrackedRun, rank: int):
        self._folder, self._run = folder, run
        self._console = log_to_console() if rank == 0 else None
        self._files = _open_log_files(folder, rank, run.options.rotate_mb) if folder is not None else []
        self._bar: ProgressBar | None = None
        self._loss: float | None = None
        self._tokens_per_second: float | None = None
        self._has_ended = False

    def rewind(self, step: int) -> None:
        """See Sink. Logs are never cut: they hold the lines of every attempt."""
        self._close_bar()
        if self._console is not None and is_terminal(sys.stdout):
            self._console.bar = self._bar = ProgressBar(self._run.max_step, step)

    def show_progress(self, step: int) -> None:
        """Move the bar. This is called at every step and reads only the clock unless the bar is due."""
        if self._bar is not None and self._bar.is_due():
            self._bar.show(step, self._loss, self._tokens_per_second)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink."""
        if kind == "train":
            self._loss, self._tokens_per_second = values["loss"], values["tokens_per_second"]
            if self._bar is not None:
                self._bar.show(step, self._loss, self._tokens_per_second)
            log.info("%s", self._step_line(step, values))
        elif kind == "valid":
            best = values["is_best"]
            start = f"Eval {step // self._run.valid_interval} at step {step}"
            self._framed("-", start, "valid", values, " | best" if best else "", "bold green" if best else "cyan")
        else:
            self._end_of_training()
            self._framed("=", f"{values['split'].capitalize()} at step {step}", values["split"], values, "", "bold")

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._end_of_training()
        if "train_seconds" in values:
            log.info("Training time: %.2f minutes", values["train_seconds"] / 60)
        if "tokens_per_second" in values:
            log.info("Training throughput: %.2f tok/s", values["tokens_per_second"])
        if values.get("sample"):
            log.info("Sample:\n%s", printable(values["sample"]))
        if self._folder is not None:
            log.info("Run folder: %s", short_path(self._folder))

    def sync(self) -> None:
        """See Sink. Logs are for people: nothing depends on them."""

    def close(self, exit_code: int) -> None:
        """See Sink."""
        self._close_bar()
        for handler in self._files:
            logging.getLogger("txl").removeHandler(handler)
            handler.close()

    def _step_line(self, step: int, values: Mapping[str, Any]) -> str:
        width = len(str(self._run.max_step))
        return (
            f"epoch {values['epoch']:2d} step {step:>{width}d} | lr {values['lr']:.2e} "
            f"| tok/s {values['tokens_per_second']:7.0f} | loss {values['loss']:6.3f} | {self._score(values, 8)}"
        )

    def _framed(
        self, character: str, start: str, split: str, values: Mapping[str, Any], end: str = "", style: str = ""
    ) -> None:
        """Write a result and the lengths that it was measured with between two lines of `character`.

        Args:
            character: what the frame is made of.
            start: the beginning of the first line.
            split: the part of the data set that was evaluated.
            values: the record of the result.
            end: what follows the score.
            style: colours of the first line on a terminal.
        """
        seconds, loss = f"{values['seconds']:.2f} s", f"{split} loss {values['loss']:.3f}"
        log.info("%s", character * FRAME_WIDTH)
        line = f"{start} | {seconds} | {loss} | {self._score(values)}{end}"
        log.info("%s", line, extra={"style": style})
        log.info("  %s batch %d", Geometry.from_record(values), values["batch_size"])
        log.info("%s", character * FRAME_WIDTH)

    def _score(self, values: Mapping[str, Any], width: int = 0) -> str:
        """`ppl 22.71` or `bpc 1.23455`."""
        metric = self._run.metric
        return f"{metric} {values[metric]:{width}.{5 if metric == 'bpc' else 2}f}"

    def _end_of_training(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._close_bar()
            log.info("End of training")

    def _close_bar(self) -> None:
        if self._bar is not None and self._console is not None:
            self._bar.close()
            self._bar = self._console.bar = None


def _open_log_files(folder: Path, rank: int, rotate_mb: int) -> list[logging.Handler]:
    """Add a rank's log files to the logger of this package, and return them."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    most = rotate_mb * 1_000_000
    own = _LogFile(folder / "logs" / f"rank_{rank}.log", most)
    own.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [own, _LogFile(folder / "train.log", most)] if rank == 0 else [own]
    package = logging.getLogger("txl")
    package.setLevel(logging.INFO)
    for handler in handlers:
        package.addHandler(handler)
    return handlers


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file of bounded size. One that cannot be written does not disturb the run, and is told of once."""

    def __init__(self, path: Path, most_bytes: int):
        super().__init__(path, maxBytes=most_bytes, backupCount=1, encoding="utf-8", errors="backslashreplace")
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Print one warning for a disk that is full or broken; other errors are logging's to report."""
        reason = disk_fault(sys.exception() or OSError())
        if reason is None:
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"warning: {self.baseFilename}: {reason}; the run goes on without its lines", file=sys.stderr)
