"""How fast a run will be: as fast as one of its own kind was, or as the original published for the nearest machine."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txl.config.differences import read_flat_config
from txl.config.schema import RunConfig
from txl.files import open_for_reading, parse_json, read_json, short_path
from txl.plan.published import (
    TRAINING_MACHINES,
    PublishedTable,
    nearest_machine,
    published_precision,
    published_rows,
)
from txl.plan.run_plan import Plan
from txl.system.hardware import visible_gpus

MOST_RUNS = 200  # run folders that are compared with the plan
TAIL_BYTES = 65536  # of metrics.jsonl: the newest log lines
SAME_PLAN = "nodes gpus_per_node gpu world_size micro_batch_size grad_accum_steps tokens_per_step parameters".split()
SAME_CONFIG = "precision.name hardware.name attention compile recompute train.tgt_len train.mem_len".split()
# Model -> parameters of its layers, tgt_len and mem_len of training: the speed was published for these.
PUBLISHED_MODELS = {"base": (54_599_680, 192, 192), "large": (245_532_672, 384, 384)}


@dataclass(frozen=True)
class ExpectedSpeed:
    """Tokens per second of all processes together, and where the number is from."""

    tokens_per_second: float
    source: str


def expected_speed(config: RunConfig, plan: Plan) -> ExpectedSpeed | None:
    """The speed of a planned run, measured before validations and checkpoints are counted; None: nothing is known.

    Args:
        config: The run. Other runs of its name, in the folders beside its own, may have measured the speed.
        plan: Its plan.
    """
    return _measured_speed(config, plan) or _published_speed(config, plan)


def _measured_speed(config: RunConfig, plan: Plan) -> ExpectedSpeed | None:
    """What the newest run of the same name, model, batch and machine has measured."""
    wanted = json.loads(json.dumps(plan.to_dict()))
    wanted_config = {key: _value_at(config, key) for key in SAME_CONFIG}
    plans = sorted((Path(config.runs) / config.name).glob("*/plan.json"), key=_age, reverse=True)
    for path in plans[:MOST_RUNS]:
        there = read_json(path)
        if not isinstance(there, dict) or any(there.get(key) != wanted[key] for key in SAME_PLAN):
            continue
        try:
            settings = read_flat_config(path.parent)
        except (OSError, ValueError):
            continue
        speed = _recorded_speed(path.parent)
        if speed and all(settings.get(key) == value for key, value in wanted_config.items()):
            return ExpectedSpeed(speed, f"measured by {short_path(path.parent)}")
    return None


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _value_at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return getattr(value, "name", value)


def _recorded_speed(run: Path) -> float | None:
    """The mean of a finished training, or the last log line of one that is not."""
    summary = read_json(run / "summary.json")
    if isinstance(summary, dict) and summary.get("tokens_per_second"):
        return float(summary["tokens_per_second"])
    try:
        with open_for_reading(run / "metrics.jsonl") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            speed = parse_json(line).get("tokens_per_second")
        except (ValueError, AttributeError):
            continue
        if speed:
            return float(speed)
    return None


def _published_speed(config: RunConfig, plan: Plan) -> ExpectedSpeed | None:
    """What was published for the nearest number of GPUs and micro batch of the nearest machine, scaled to the run's."""
    model = config.model.name
    shape = (plan.layer_parameters, config.train.tgt_len, config.train.mem_len)
    if PUBLISHED_MODELS.get(model) != shape or config.data.name != "wt103":
        return None
    gpus = visible_gpus() if plan.gpu is None and config.hardware.gpus is None else []
    machine = nearest_machine(plan.gpu or (gpus[0].name if gpus else ""), TRAINING_MACHINES)
    precision = published_precision(config.precision.name.name)
    rows = [
        row
        for row in published_rows(PublishedTable.throughput)
        if (row["machine"], row["model"], row["precision"]) == (machine, model, precision)
    ]
    if not rows:
        return None

    def distance(row: dict[str, Any]) -> tuple[float, float]:
        return (
            abs(math.log(row["gpus"] / plan.world_size)),
            abs(math.log(row["micro_batch_size"] / plan.micro_batch_size)),
        )

    row = min(rows, key=distance)
    where = f"published for {row['gpus']} GPUs of {machine}, {precision}, micro batch {row['micro_batch_size']}"
    if row["gpus"] != plan.world_size:
        where += f", scaled to {plan.world_size}"
    return ExpectedSpeed(row["tokens_per_second"] * plan.world_size / row["gpus"], where)
