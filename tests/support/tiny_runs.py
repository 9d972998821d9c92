"""Training runs that take a second."""

import json
from pathlib import Path
from typing import Any

TINY_RUN = [
    "model=small",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=16",
    "model.d_head=8",
    "model.d_inner=32",
    "model.dropout=0.1",
    "hardware=cpu",
    "train.batch_size=8",
    "train.tgt_len=8",
    "train.mem_len=8",
    "train.log_interval=1",
    "valid.tgt_len=8",
    "valid.batch_size=4",
    "valid.interval=1000",
    "scheduler.warmup_step=5",
    "tracking.environment=false",
]


def metrics(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The records of one kind (`train`, `valid` or `test`) in a run's metrics.jsonl, in their order."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
