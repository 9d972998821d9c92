"""What a sink is: a place that a run's metrics go to. And which sinks a run has.

The console and metrics.jsonl are always there. The other sinks are named in config/tracking.py (SinkName), and
txl/tracking/<name>_sink.py holds the class of each, <Name>Sink. Only the sinks that a run uses are imported.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from txl.config.compose import to_dict
from txl.config.schema import RunConfig
from txl.config.tracking import SinkName, TrackingConfig
from txl.system.process_exit import DIVERGED, INTERRUPTED, MISSED_TARGET, PREEMPTED, TERMINATED

HIDDEN = "***"  # in place of values that must not be published
ENDS = {
    0: "finished",
    MISSED_TARGET: "missed target",
    DIVERGED: "diverged",
    PREEMPTED: "requeued",
    INTERRUPTED: "stopped",
    TERMINATED: "stopped",
}
SPEEDS = {"tokens_per_second", "ms_per_batch"}


def series_name(kind: str, name: str) -> str:
    """What a value of a record is called among curves: train/loss, valid/ppl, perf/tokens_per_second, ...

    Args:
        kind: train, valid or test.
        name: of the value in metrics.jsonl.
    """
    if name in SPEEDS:
        return f"perf/{name}"
    return f"perf/{kind}_seconds" if name == "seconds" else f"{kind}/{name}"


def describe_end(exit_code: int) -> str:
    """What became of a run that ends with this code: finished, requeued, stopped, diverged, missed target, failed."""
    return ENDS.get(exit_code, "failed")


@dataclass(frozen=True)
class TrackedRun:
    """What sinks need to know about a run."""

    options: TrackingConfig
    settings: dict[str, Any]  # the whole configuration, as `to_dict` gives it, without secrets
    metric: str  # the score beside the loss: ppl or bpc
    max_step: int
    valid_interval: int  # steps between validations
    live: bool = True  # False: a finished run is replayed, and waits for slow sinks

    @staticmethod
    def of(config: RunConfig, live: bool = True) -> "TrackedRun":
        """The description of the run with this configuration, which is training (`live`) or replayed."""
        metric, max_step, interval = config.data.metric.value, config.train.max_step, config.valid.interval
        settings = to_dict(config)
        if config.tracking.notify is not None:  # it may hold a password or a key
            settings["tracking"]["notify"] = HIDDEN
        return TrackedRun(config.tracking, settings, metric, max_step, interval, live)


class Sink(Protocol):
    """A place that a run's metrics go to, on rank 0.

    A sink whose method raises is closed and left out from then on; the run continues without it. The exception is an
    essential sink, whose failure ends the run.
    """

    essential: bool

    def rewind(self, step: int) -> None:
        """Drop the records of steps after `step` and get ready for new ones.

        This is the first call, with 0 in a new run. It is repeated if a running training returns to an earlier step.
        """

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record values that were measured at a step.

        Args:
            kind: `train` (a log line), `valid` (a validation) or `test` (the evaluation after training).
            step: the number of updates that the measured weights have had.
            values: names and numbers, as metrics.jsonl holds them.
        """

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of a training that has ended, as summary.json holds them."""

    def sync(self) -> None:
        """Put the records so far on the disk, where the sink keeps them. A checkpoint is about to be saved."""

    def close(self, exit_code: int) -> None:
        """Finish writing. `exit_code` is 0 if the run ended as planned."""


class SinkClass(Protocol):
    """How a sink is made: nothing is opened or started before `rewind`."""

    def __call__(self, folder: Path, run: TrackedRun) -> Sink: ...


def sink_class(name: SinkName) -> SinkClass:
    """The class <Name>Sink of txl/tracking/<name>_sink.py."""
    module = importlib.import_module(f"txl.tracking.{name.value}_sink")
    return cast(SinkClass, getattr(module, f"{name.value.capitalize()}Sink"))
