"""Give the record of a finished run to a sink that it did not have: `txl track RUN --to wandb`."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from txl.config.compose import from_dict
from txl.config.schema import RunConfig
from txl.config.tracking import SinkName, WandbMode
from txl.config.yaml_file import read_yaml
from txl.errors import ConfigError, shortened
from txl.files import open_for_reading, parse_json, read_json, read_lines, sha256_of_file, write_json
from txl.system.run_lock import is_locked
from txl.tracking.sinks import TrackedRun, sink_class

REPLAYED = "tracked.json"  # in the run folder: which sinks have its record
KINDS = ("train", "valid", "test")
NUMBERS = ("loss", "ppl", "bpc", "grad_norm")  # null in metrics.jsonl: the number was not finite


def track_finished_run(run: Path, name: SinkName, mode: WandbMode) -> bool:
    """Give all records of a run to a sink, once: a second call with an unchanged run does nothing.

    A run that went on since the last call is continued: wandb gets the later records, TensorBoard's files are written
    anew.

    Args:
        run: A run folder.
        name: Which sink.
        mode: Of wandb.

    Returns:
        Whether something was written.

    Raises:
        ConfigError: The folder holds no finished run, or the sink failed.
    """
    metrics, summary = run / "metrics.jsonl", read_json(run / "summary.json")
    if not metrics.is_file() or not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} holds no run with metrics.jsonl and config.yaml; give run folders")
    if is_locked(run):
        raise ConfigError(f"{run} is running; wait for its end, or start runs with tracking={name.value}")
    done = read_json(run / REPLAYED) or {}
    if name is SinkName.wandb and name.value not in done and (run / "wandb_id").exists():
        raise ConfigError(f"{run} was recorded by wandb while it ran; `wandb sync {run}/wandb/*run-*` sends it")
    digest = sha256_of_file(metrics) + str(sha256_of_file(run / "summary.json") if summary else "")
    before = done.get(name.value, {})
    if before.get("digest") == digest:
        return False
    config = read_run_config(run)
    wandb = replace(config.tracking.wandb, mode=mode)
    config = replace(config, tracking=replace(config.tracking, wandb=wandb))
    step = before.get("step", 0) if name is SinkName.wandb else 0
    last = _replay(TrackedRun.of(config, live=False), run, name, step, summary)
    write_json(run / REPLAYED, done | {name.value: {"digest": digest, "step": last}})
    return True


def read_run_config(run: Path) -> RunConfig:
    """A run's config.yaml. Raises ConfigError if it is no configuration of a training."""
    try:
        return from_dict(read_yaml(run / "config.yaml"), RunConfig)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = shortened(str(getattr(error, "strerror", None) or error))
        raise ConfigError(f"{shortened(str(run))}/config.yaml cannot be read: {reason}; mend the file") from None


def _replay(tracked: TrackedRun, run: Path, name: SinkName, step: int, summary: Any) -> int:
    """Give a sink the records after a step, and the summary; returns the step of the last record."""
    sink = sink_class(name)(run, tracked)
    sink.rewind(step)
    last = step
    for record in read_records(run / "metrics.jsonl"):
        kind, at = record.pop("kind"), record.pop("step")
        record.pop("time", None)
        if at > step or kind == "test":
            sink.log(kind, at, record)
            last = max(last, at)
    if isinstance(summary, dict):
        sink.summary(summary)
    sink.close(0)
    if getattr(sink, "failed", False):
        raise ConfigError(f"{run}: {name.value} did not take the record (see the warning above); try again")
    return last


def read_records(metrics: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl in order. Damaged lines are left out; what was not finite is NaN."""
    with open_for_reading(metrics) as file:
        for line in itertools.chain.from_iterable(read_lines(file)):
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("kind") in KINDS and isinstance(record.get("step"), int):
                missing = {key: math.nan for key in NUMBERS if key in record and record[key] is None}
                yield record | missing
