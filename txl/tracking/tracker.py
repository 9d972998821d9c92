"""The record of a run: events of a training become records, and every sink gets each record."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from txl.config.geometry import Geometry
from txl.config.tracking import enabled_sinks
from txl.files import write_json
from txl.system.versions_and_devices import environment_record
from txl.tracking.console_sink import ConsoleSink
from txl.tracking.jsonl_sink import JsonlSink
from txl.tracking.scores import score_from_loss
from txl.tracking.sinks import Sink, TrackedRun, sink_class

log = logging.getLogger(__name__)


def open_tracker(run: TrackedRun, run_dir: Path | None, rank: int) -> "Tracker":
    """The tracker of a run on one rank.

    Every rank writes its log file. Rank 0 also writes the console, metrics.jsonl and the sinks that the run chose.

    Args:
        run: the run's description.
        run_dir: the run folder; None writes nothing but the console (debug=true).
        rank: the number of this process.
    """
    console = ConsoleSink(run_dir, run, rank)
    sinks: list[Sink] = [console]
    if rank == 0 and run_dir is not None:
        sinks.append(JsonlSink(run_dir, run))
        if run.options.environment:
            write_json(run_dir / "environment.json", environment_record(), indent=1)
        for name in enabled_sinks(run.options):
            try:
                sinks.append(sink_class(name)(run_dir, run))
            except Exception as error:
                _warn_about_failure(name.value, error)
    return Tracker(sinks, run.metric, console.show_progress)


class Tracker:
    """Turns the events of a training into records and gives them to every sink. Without sinks it does nothing."""

    def __init__(
        self, sinks: Sequence[Sink] = (), metric: str = "ppl", show_progress: Callable[[int], None] | None = None
    ):
        """Args:
        sinks: where records go, in this order; they are closed in the reverse order.
        metric: the score that is recorded beside a loss: ppl or bpc.
        show_progress: called with the step at every step.
        """
        self._sinks, self._metric, self._show_progress = list(sinks), metric, show_progress

    def rewind(self, step: int) -> None:
        """Begin to record a run that goes on from `step` (0: a new run). Records of later steps are dropped."""
        self._each(lambda sink: sink.rewind(step))

    def train_step(
        self,
        *,
        epoch: int,
        step: int,
        batch: int,
        n_batches: int,
        lr: float,
        ms_per_batch: float,
        tokens_per_second: float,
        loss: float,
        grad_norm: float,
        tokens_seen: int,
        steps: int | None = None,
        loss_scale: float | None = None,
        skipped_steps: int | None = None,
        rollbacks: int | None = None,
        spike: bool | None = None,
    ) -> None:
        """Record the mean over the steps since the last call.

        Args:
            epoch: which pass over the text this is, from 1.
            step: the number of updates so far.
            batch: the number of batches since the epoch began.
            n_batches: the number of batches of an epoch.
            lr: the learning rate.
            ms_per_batch: milliseconds per update.
            tokens_per_second: of all processes together.
            loss: nats per token.
            grad_norm: the norm of the last gradient before clipping.
            tokens_seen: the number of tokens trained on since the run began.
            steps: the number of steps since the record before, from which one sees where records are missing.
            loss_scale: the factor of the fp16 loss scaler, if there is one.
            skipped_steps: the number of steps that were skipped since the run began, if steps can be skipped.
            rollbacks: how often the run went back to a checkpoint after it had diverged, if it did.
            spike: True if the loss has suddenly risen.
        """
        values = {
            "epoch": epoch,
            "batch": batch,
            "n_batches": n_batches,
            "lr": lr,
            "ms_per_batch": ms_per_batch,
            "tokens_per_second": tokens_per_second,
            "loss": loss,
            self._metric: score_from_loss(loss, self._metric),
            "grad_norm": grad_norm,
            "tokens_seen": tokens_seen,
        }
        optional = {"steps": steps, "loss_scale": loss_scale, "skipped_steps": skipped_steps}
        optional |= {"rollbacks": rollbacks, "spike": spike}
        self._log("train", step, values | {key: value for key, value in optional.items() if value is not None})

    def validation(
        self,
        *,
        step: int,
        seconds: float,
        loss: float,
        tokens: int,
        geometry: Geometry,
        batch_size: int,
        is_best: bool,
    ) -> None:
        """Record a validation.

        Args:
            step: the number of updates so far.
            seconds: how long the validation took.
            loss: nats per token.
            tokens: the number of tokens that the loss is the mean of.
            geometry: the lengths that the loss was measured with.
            batch_size: the number of sequences side by side.
            is_best: the loss is the lowest so far.
        """
        values = self._result(seconds, loss, tokens, geometry, batch_size)
        self._log("valid", step, values | {"is_best": is_best})

    def test(
        self, *, split: str, seconds: float, loss: float, tokens: int, geometry: Geometry, batch_size: int, step: int
    ) -> None:
        """Record the evaluation after training.

        Args:
            split: the split that was evaluated.
            seconds: how long the evaluation took.
            loss: nats per token.
            tokens: the number of tokens that the loss is the mean of.
            geometry: the lengths that the loss was measured with.
            batch_size: the number of sequences side by side.
            step: the step of the evaluated weights, which may be older than the last step.
        """
        values = self._result(seconds, loss, tokens, geometry, batch_size)
        self._log("test", step, values | {"split": split})

    def message(self, text: str) -> None:
        """Write a line (or several) to the console and the logs."""
        log.info("%s", text)

    def progress(self, step: int) -> None:
        """Note that a step is done. This costs next to nothing and is called at every step."""
        if self._show_progress is not None:
            self._show_progress(step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of a training that has ended."""
        self._sinks.sort(key=lambda sink: sink.essential)  # a run with a summary.json is finished: it comes last
        self._each(lambda sink: sink.summary(values))

    def sync(self) -> None:
        """Put all records so far on the disk, before a checkpoint is saved."""
        self._each(lambda sink: sink.sync())

    def close(self, exit_code: int = 0) -> None:
        """Finish all records. A second call does nothing."""
        while self._sinks:
            sink = self._sinks[-1]
            try:
                sink.close(exit_code)
            except Exception as error:
                _warn_about_failure(_name_of(sink), error)
            self._sinks.pop()

    def _result(self, seconds: float, loss: float, tokens: int, geometry: Geometry, batch_size: int) -> dict[str, Any]:
        score = score_from_loss(loss, self._metric)
        result = {"loss": loss, self._metric: score, "seconds": seconds, "tokens": tokens}
        return result | asdict(geometry) | {"batch_size": batch_size}

    def _log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.log(kind, step, values))

    def _each(self, call: Callable[[Sink], None]) -> None:
        """Call every sink. A sink that fails is left out from then on, unless it is essential."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                if sink.essential:
                    raise
                self._sinks.remove(sink)
                _warn_about_failure(_name_of(sink), error)
                _close_quietly(sink)


def _name_of(sink: Sink) -> str:
    return type(sink).__name__.removesuffix("Sink").lower()


def _warn_about_failure(name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")
    log.warning("%s: %s; the run goes on without it, metrics.jsonl holds everything", name, reason)


def _close_quietly(sink: Sink) -> None:
    try:
        sink.close(1)
    except Exception as error:
        log.debug("closing %s failed: %s", _name_of(sink), error)
