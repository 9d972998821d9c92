"""The rows that tests/gpu_check.py collects, and the page made of them. Imports no torch."""

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

# Tokens per second by (model, micro batch, GPU), estimated from counted bytes and products before any GPU was at hand:
# as the code stood when they were made, and with all changes that were planned then.
ESTIMATES = {
    ("base", 128, "H200"): (364_000, 560_000),
    ("base", 128, "H100"): (287_000, 455_000),
    ("large", 32, "H200"): (115_000, 174_000),
    ("large", 32, "H100"): (None, 146_000),
}
GOALS = {"base": 450_000, "large": 191_000}  # what eight A100 did, published
ORDER = (
    "probe kernels softmax golden curves deterministic warm attention pairs train profile inference reference".split()
)
HIDDEN = ("step", "at", "where")  # keys that the page leaves out


class Rows:
    """Where one step writes its findings, and until when it may begin something new."""

    def __init__(self, file: Path, step: str, until: float, tiny: bool, reference: Path | None = None):
        """`until`: seconds since the epoch. `tiny`: small sizes, on a CPU."""
        self.file, self.step, self.until, self.tiny, self.reference = file, step, until, tiny, reference

    def add(self, **values: object) -> None:
        """Write one row; it is on disk when this returns."""
        line = json.dumps({"step": self.step, "at": round(time.time(), 1), **values}, default=str)
        with open(self.file, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)

    def left(self) -> float:
        """Seconds until this step should end."""
        return self.until - time.time()

    def has_time(self, seconds: float, **case: object) -> bool:
        """Whether a case that takes this long may begin; if not, a row says that it was skipped."""
        if self.tiny or self.left() > seconds:
            return True
        self.add(**case, skipped="no time was left")
        return False

    @contextlib.contextmanager
    def guarded(self, **case: object) -> Iterator[None]:
        """An error in the block becomes a row, and the next case goes on."""
        try:
            yield
        except Exception as error:
            kind, text = type(error).__name__, str(error)[:300]
            self.add(**case, failed=f"{kind}: {text}", where=traceback.format_exc()[-700:])


def is_well(row: dict[str, object]) -> bool:
    """Whether a row is no failure. Cases for which no time was left, or that do not fit the memory, are none."""
    return row.get("ok") is not False and "failed" not in row and "cut_off" not in row


def format_page(rows: list[dict[str, object]], revision: str) -> str:
    """docs/results/gpu.md: the estimates beside what was measured, then every row, step by step."""
    device = next((str(row["device"]) for row in rows if "device" in row), None)
    bad = sum(not is_well(row) for row in rows)
    parts = [
        "# On a GPU",
        f"Written by `make gpu-check` (tests/gpu_check.py), revision {revision}." if rows else NOT_MEASURED,
        "## Estimates beside measurements",
        "Tokens per second of training in bf16 on one GPU. The estimates were counted from bytes and products before "
        "any GPU was at hand: with the code of that day, and with the changes planned then. The goal is what eight "
        "A100 did.",
        _as_table(_estimates(rows, device)),
    ]
    parts += [f"{len(rows)} rows, {bad} not well."] if rows else []
    for step in ORDER:
        mine = [{k: v for k, v in row.items() if k not in HIDDEN} for row in rows if row["step"] == step]
        parts += [f"## {step}"] if mine else []
        for columns in dict.fromkeys(tuple(row) for row in mine):
            parts.append(_as_table([row for row in mine if tuple(row) == columns]))
    return "\n\n".join(parts) + "\n"


NOT_MEASURED = (
    "**Not measured yet: no GPU was at hand.** `make gpu-check` on a machine with one writes this page: correctness "
    "first, then the tables, in nine minutes at most. `GPU_CHECK=tiny python3 tests/gpu_check.py` rehearses it on a "
    "CPU, and is a part of `make test`."
)


def _estimates(rows: list[dict[str, object]], device: str | None) -> Iterable[dict[str, object]]:
    best: dict[tuple[object, object], float] = {}
    for row in rows:
        if row["step"] == "train" and row.get("precision") == "bf16" and "tokens_per_second" in row:
            key, speed = (row["model"], row["micro_batch_size"]), row["tokens_per_second"]
            assert isinstance(speed, (int, float))
            best[key] = max(best.get(key, 0.0), speed)
    for (model, micro, gpu), (before, after) in ESTIMATES.items():
        measured = best.get((model, micro)) if device and gpu in device else None
        yield {
            "model": model, "micro batch": micro, "GPU": gpu, "estimated then": before or "-",
            "estimated after the changes": after, "goal": GOALS[model],
            "measured": round(measured) if measured else "not measured yet",
        }  # fmt: skip


def _as_table(rows: Iterable[dict[str, object]]) -> str:
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/").replace("\n", " ")
