"""What the original published for the machine that is nearest to this one. For a CPU there is nothing."""

import json
import re
from pathlib import Path
from typing import Any

import torch

TRAINING = Path(__file__).with_name("published_training.json")
INFERENCE = Path(__file__).with_name("published_inference.json")

# Pattern of a GPU's name, and the published machine that is nearest to it. The first pattern found counts.
TRAINING_MACHINES = [("V100.*16GB", "DGX-1"), ("V100", "DGX-2H"), ("A100|H100|H200", "DGX A100")]
INFERENCE_MACHINES = [("T4", "T4"), ("V100", "DGX-1"), ("A100|H100|H200", "A100")]


def nearest_machine(gpu: str, machines: list[tuple[str, str]]) -> str | None:
    """The published machine nearest to a GPU of this name, or None."""
    return next((machine for pattern, machine in machines if re.search(pattern, gpu)), None)


def published_training_row(row: dict[str, Any]) -> dict[str, Any] | None:
    """What was published for a row's model, precision, micro-batch and number of GPUs; bf16 compares with fp16."""
    if not torch.cuda.is_available():
        return None
    machine = nearest_machine(torch.cuda.get_device_name(), TRAINING_MACHINES)
    wanted = (machine, row["model"], _published_precision(row), row["processes"], row["micro_batch_size"])
    rows: list[dict[str, Any]] = json.loads(TRAINING.read_text())
    for one in rows:
        if (one["machine"], one["model"], one["precision"], one["gpus"], one["micro_batch_size"]) == wanted:
            return one
    return None


def published_inference_rows(model: str, row: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """What was published for this model and a row's batch size and precision; bf16 compares with fp16."""
    if device.type != "cuda":
        return []
    machine = nearest_machine(torch.cuda.get_device_name(device), INFERENCE_MACHINES)
    rows: list[dict[str, Any]] = json.loads(INFERENCE.read_text())
    wanted = (model, _published_precision(row), row["batch_size"])
    return [
        one
        for one in rows
        if machine is not None
        and machine in one["machine"]
        and (one["model"], one["precision"], one["Batch size"]) == wanted
    ]


def _published_precision(row: dict[str, Any]) -> str:
    return "fp16" if row["precision"] == "bf16" else str(row["precision"])
