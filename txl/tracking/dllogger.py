"""Metrics as NVIDIA's DLLogger writes them, for scripts that read the original's logs: lines of `DLLL {json}`.

Its names of the metrics are the original's; its times are text, in seconds.
"""

import json
from datetime import datetime
from pathlib import Path

# Our names of what is measured -> the original's.
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


class DLLogger:
    """Appends to a file. Values are numbers, text and containers of them that JSON can hold."""

    def __init__(self, path: Path, parameters: dict):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._began = datetime.now()
        self.write("PARAMETER", parameters)

    def log(self, kind: str, step: int, values: dict) -> None:
        """What a record of metrics.jsonl says of a step, as far as the original has a name for it."""
        self.write([step], named(kind, values))

    def write(self, step: list | str, data: dict) -> None:
        """`step`: [36000], [] for the end of a run, or "PARAMETER"."""
        now = datetime.now()
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str((now - self._began).total_seconds()),
            "type": "LOG",
            "step": step,
            "data": data,
        }
        self._file.write(f"DLLL {json.dumps(line)}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def named(kind: str, values: dict) -> dict:
    return {theirs: values[ours] for ours, theirs in NAMES[kind].items() if ours in values}


def summary(values: dict, best_valid: dict) -> dict:
    """The end of a training: `values` as in summary.json, `best_valid` as in a record of a validation."""
    trained = {"train_throughput": values["tokens_per_second"], "train_elapsed": values["train_seconds"] / 60}
    return named("test", values.get("test", {})) | trained | named("valid", best_valid)


def evaluated(result: dict, latencies: dict[str, float] | None) -> dict:
    """The end of an evaluation; `latencies` in seconds, as timing.percentiles says them."""
    summary = {"eval_loss": result["loss"], "eval_ppl": result["ppl"], "eval_throughput": result["tokens_per_second"]}
    for name, seconds in (latencies or {}).items():
        summary["eval_avg_latency" if name == "mean" else f"eval_{name[1:]}%_latency"] = 1000 * seconds
    return summary


def stays(line: bytes, step: int) -> bool:
    """Is this line whole, and not from after `step`? The end of a run comes again."""
    try:
        at = json.loads(line.removeprefix(b"DLLL "))["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return False
    return at == "PARAMETER" or (isinstance(at, list) and len(at) == 1 and at[0] <= step)
