"""Trainings that a comparison needs: each is done once, and continued if it was interrupted."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from txl.files import PROJECT


def train_once(run_dir: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Train with `overrides` on the CPU, unless the run in `run_dir` is finished; return its metrics.

    Raises subprocess.CalledProcessError if the training fails.
    """
    command = [sys.executable, str(PROJECT / "train.py"), *overrides]
    subprocess.run([*command, f"run_dir={run_dir}", "resume=auto", "hardware=cpu"], cwd=PROJECT, check=True)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses_by_step(records: list[dict[str, Any]]) -> dict[int, float]:
    """The validation loss by step, in nats per token."""
    return {record["step"]: record["loss"] for record in records if record["kind"] == "valid"}


def comparison_arguments(description: str | None, seeds: int, runs: str) -> argparse.Namespace:
    """The command line of a comparison: `data` and `runs` as absolute paths, and `seeds`.

    Args:
        description: of the program.
        seeds: how many, unless another number is given.
        runs: folder of the run folders in the project's runs/, unless another one is given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with wikitext-mini/ and tinyshakespeare/")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / runs)
    arguments = parser.parse_args()
    arguments.data, arguments.runs = arguments.data.resolve(), arguments.runs.resolve()
    return arguments
