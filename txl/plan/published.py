"""The tables that the original published, as rows of plain values; and which of its machines is nearest to a GPU.

Every table is a JSON file beside this module, with one object per row:

throughput  training speed by machine, model, precision, number of GPUs and micro batch
inference   speed and latency of one GPU
accuracy    test perplexity and minutes of whole trainings
stability   perplexity over several seeds, by step: mean, sd, minimum, maximum, median (of valid, then of test)
"""

import functools
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any


class PublishedTable(Enum):
    """The published tables."""

    throughput = "throughput"
    inference = "inference"
    accuracy = "accuracy"
    stability = "stability"


# Pattern of a GPU's name, and the published machine that is nearest to it. The first pattern found counts.
TRAINING_MACHINES = [("V100.*16GB", "DGX-1"), ("V100", "DGX-2H"), ("A100|H100|H200", "DGX A100")]
INFERENCE_MACHINES = [("T4", "T4"), ("V100", "DGX-1"), ("A100|H100|H200", "A100")]


@functools.cache
def published_rows(table: PublishedTable) -> list[dict[str, Any]]:
    """The rows of a published table. They are shared: do not change them."""
    path = Path(__file__).with_name(f"published_{table.value}.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def nearest_machine(gpu: str, machines: list[tuple[str, str]]) -> str | None:
    """The published machine nearest to a GPU of this name, or None."""
    return next((machine for pattern, machine in machines if re.search(pattern, gpu)), None)


def published_precision(precision: str) -> str:
    """The precision whose published rows compare with this one: fp16 for bf16, otherwise itself."""
    return "fp16" if precision == "bf16" else precision


def published_training_row(row: dict[str, Any], gpu: str) -> dict[str, Any] | None:
    """The published speed for a row's model, precision, micro batch and number of GPUs, or None.

    Args:
        row: `model`, `precision`, `processes` and `micro_batch_size` of a training.
        gpu: The name of the GPU.
    """
    machine = nearest_machine(gpu, TRAINING_MACHINES)
    wanted = (machine, row["model"], published_precision(row["precision"]), row["processes"], row["micro_batch_size"])
    for one in published_rows(PublishedTable.throughput):
        if (one["machine"], one["model"], one["precision"], one["gpus"], one["micro_batch_size"]) == wanted:
            return one
    return None


def published_inference_rows(model: str, row: dict[str, Any], gpu: str) -> list[dict[str, Any]]:
    """The published rows for this model and a row's `batch_size` and `precision` on a GPU of this name."""
    machine = nearest_machine(gpu, INFERENCE_MACHINES)
    wanted = (model, published_precision(row["precision"]), row["batch_size"])
    return [
        one
        for one in published_rows(PublishedTable.inference)
        if machine is not None
        and machine in one["machine"]
        and (one["model"], one["precision"], one["Batch size"]) == wanted
    ]
