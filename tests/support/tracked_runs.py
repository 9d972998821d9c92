"""Trackers for tests."""

import json
from collections.abc import Callable
from pathlib import Path

from txl.config.geometry import Geometry
from txl.config.tracking import TrackingConfig, WandbConfig, WandbMode
from txl.tracking.sinks import TrackedRun, series_name
from txl.tracking.tracker import Tracker, open_tracker

GEOMETRY = Geometry(192, 192)
STEP = dict(epoch=18, batch=283, n_batches=2101, lr=1.22e-3, ms_per_batch=185.1, tokens_per_second=265585.4)
STEP |= dict(loss=3.123, grad_norm=0.5, tokens_seen=36000 * 49152)
WANDB = dict(project="txl", group="seeds", tags=["a", "b"], job_type="train")


def tracked_run(metric: str = "ppl", mode: WandbMode = WandbMode.none, **options) -> TrackedRun:
    """`options`: of TrackingConfig."""
    options = {"environment": False, "wandb": WandbConfig(mode=mode, **WANDB)} | options
    settings = {"name": "demo", "seed": 1, "model": {"n_layer": 4}}
    return TrackedRun(TrackingConfig(**options), settings, metric, max_step=40000, valid_interval=5000)


def new_tracker(run_dir: Path | None, rank: int = 0, resume_step: int = 0, **options) -> Tracker:
    """A tracker that has begun to record."""
    made = open_tracker(tracked_run(**options), run_dir, rank)
    made.rewind(resume_step)
    return made


def records(run_dir: Path) -> list[dict]:
    """All records of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def numbers_in_metrics(run_dir: Path, convert: Callable[[float], float] = lambda value: value) -> dict:
    """name of a curve -> [(step, value), ...] of all numbers in metrics.jsonl, as sinks name them."""
    found: dict = {}
    for record in records(run_dir):
        kind, step = record.pop("kind"), record.pop("step")
        del record["time"]
        for name, value in record.items():
            if is_number(value):
                found.setdefault(series_name(kind, name), []).append((step, convert(value)))
    return found


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
