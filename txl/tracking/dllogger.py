"""Files as NVIDIA's DLLogger writes them, for scripts that read the original's logs: lines of `DLLL {json}`.

The names of metrics are the original's. Times are text, in seconds.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from txl.files import parse_json, to_json

# Names of metrics here -> names in the original.
NAMES = {
    "train": {
        "epoch": "epoch",
        "batch": "train_batch",
        "lr": "lr",
        "ms_per_batch": "train_time/batch",
        "tokens_per_second": "train_throughput",
        "loss": "train_loss",
        "ppl": "train_perplexity",
        "bpc": "train_bits_per_character",
    },
    "valid": {
        "seconds": "valid_elapsed",
        "loss": "valid_loss",
        "ppl": "valid_perplexity",
        "bpc": "valid_bits_per_character",
    },
    "test": {
        "seconds": "test_elapsed",
        "loss": "test_loss",
        "ppl": "test_perplexity",
        "bpc": "test_bits_per_character",
    },
    "eval": {
        "ms_per_batch": "eval_latency",
        "tokens_per_second": "eval_throughput",
        "loss": "eval_loss",
        "ppl": "eval_perplexity",
        "bpc": "eval_bits_per_character",
    },
}


class DLLoggerFile:
    """A file that DLLogger's lines are appended to, first of all one with the parameters."""

    def __init__(self, path: Path, parameters: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._began = datetime.now()
        self.append("PARAMETER", parameters)

    def append(self, step: list[int] | str, data: Mapping[str, Any]) -> None:
        """Write a line. `step` is [36000] for a step, [] for the end of a run, or "PARAMETER"."""
        now = datetime.now()
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str((now - self._began).total_seconds()),
            "type": "LOG",
            "step": step,
            "data": dict(data),
        }
        self._file.write(f"DLLL {to_json(line)}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def with_original_names(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record (kind: train, valid, test, eval) that the original has, under its names."""
    return {theirs: values[ours] for ours, theirs in NAMES[kind].items() if ours in values}


def evaluation_summary(result: Mapping[str, Any], latencies: Mapping[str, float] | None) -> dict[str, Any]:
    """The line at the end of an evaluation; `latencies` in seconds, as `timing.percentiles` names them."""
    summary = {"eval_loss": result["loss"], "eval_ppl": result["ppl"], "eval_throughput": result["tokens_per_second"]}
    for name, seconds in (latencies or {}).items():
        summary["eval_avg_latency" if name == "mean" else f"eval_{name[1:]}%_latency"] = 1000 * seconds
    return summary


def is_kept_at(line: bytes, step: int) -> bool:
    """Whether a line is complete and not later than `step`. The line at the end of a run is written again."""
    try:
        at = parse_json(line.removeprefix(b"DLLL "))["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return False
    return at == "PARAMETER" or (isinstance(at, list) and len(at) == 1 and bool(at[0] <= step))
