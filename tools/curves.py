"""Trainings that a comparison needs: each is done once, and continued if it was interrupted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def train_once(run_dir: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Train with `overrides` on the CPU, unless the run in `run_dir` is finished; return its metrics.

    Raises subprocess.CalledProcessError if the training fails.
    """
    command = [sys.executable, str(PROJECT / "train.py"), *overrides]
    subprocess.run([*command, f"run_dir={run_dir}", "resume=auto", "hardware=cpu"], cwd=PROJECT, check=True)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses_by_step(records: list[dict[str, Any]], kind: str = "valid") -> dict[int, float]:
    """Loss by step of the records of one kind (`train`, `valid`), in nats per token."""
    return {record["step"]: record["loss"] for record in records if record["kind"] == kind}
