"""JSON files of evaluations and benchmarks (`json=FILE`), as tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txl.errors import ConfigError
from txl.files import read_json
from txl.plan.published import published_inference_rows
from txl.report.published_tables import TrainingResult
from txl.report.runs import RunRecord, describe_geometry, score_of
from txl.report.tables import NOT_FINITE, Column, Table, Value, plain_value, show_count, show_fixed, show_short

SPLITS = ("valid", "test", "text")
LATENCIES = (("mean", "avg"), ("p90", "90%"), ("p95", "95%"), ("p99", "99%"))


@dataclass(frozen=True)
class ResultFile:
    """A JSON file that evaluate.py or benchmark.py wrote."""

    path: Path
    values: dict[str, Any]

    @property
    def is_benchmark(self) -> bool:
        """Whether it is a benchmark's."""
        return "rows" in self.values

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of a benchmark."""
        return [row for row in self.values["rows"] if isinstance(row, dict)]

    @property
    def machine(self) -> str:
        """The GPU or CPU of a benchmark."""
        machine = self.values.get("machine") or {}
        gpus = machine.get("gpus") or []
        return str(gpus[0] if gpus else machine.get("name") or machine.get("cpu") or "?")


def read_result_file(path: Path) -> ResultFile:
    """Read the JSON file of an evaluation or a benchmark.

    Raises:
        ConfigError: It is neither.
    """
    values = read_json(path)
    if isinstance(values, dict) and isinstance(values.get("rows"), list):
        return ResultFile(path, values)
    if isinstance(values, dict) and "metric" in values and any(isinstance(values.get(name), dict) for name in SPLITS):
        return ResultFile(path, values)
    raise ConfigError(
        f"{path} is no result of txl evaluate or txl benchmark (json=FILE), and no run folder; leave it out"
    )


def evaluations_of_runs(runs: Iterable[RunRecord]) -> list[ResultFile]:
    """The evaluations in run folders: at the end of a training (then=evaluate), and of evaluate.py under SLURM."""
    found = []
    for run in runs:
        values = run.summary.get("evaluation")
        if isinstance(values, dict) and "loss" in values:
            final: dict[str, Any] = {
                "checkpoint": str(run.folder),
                "metric": run.metric,
                values.get("split", "test"): values,
            }
            found.append(ResultFile(run.folder, final))
        for path in sorted(run.folder.glob("evaluations/*/result.json")):
            try:
                found.append(read_result_file(path))
            except ConfigError:
                continue  # one that failed
    return found


def evaluations_table(files: list[ResultFile]) -> Table:
    """A row for every evaluated split."""
    metrics = {str(file.values["metric"]) for file in files}
    score = metrics.pop() if len(metrics) == 1 else "score"
    columns = [
        Column("checkpoint", "checkpoint", is_text=True),
        Column("split", "split", is_text=True),
        Column("score", score, show=show_fixed(4 if score == "bpc" else 2)),
        Column("loss", "loss", show=show_fixed(4)),
        Column("learns", "learns", is_text=True, long="learns from the text", narrowest=24),
        Column("tokens_per_second", "tok/s", show=show_short),
        Column("runtime", "runtime", is_text=True, rank=3),
        Column("precision", "precision", is_text=True, rank=2),
        *(Column(key, key, only_in_files=True) for key in ("metric", "score_geometry", "tokens", "file")),
        *(Column(key, key, only_in_files=True) for key in _adaptation_keys(files)),
    ]
    table = Table("evaluations", "evaluations", columns)
    for file in files:
        shared = {key: plain_value(file.values[key]) for key in ("runtime", "precision") if file.values.get(key)}
        for split in SPLITS:
            values = file.values.get(split)
            if isinstance(values, dict) and "loss" in values:
                checkpoint = _short_path(str(file.values.get("checkpoint", "?")))
                row: dict[str, Value] = {"checkpoint": checkpoint, "split": split, "file": str(file.path)}
                table.rows.append(row | shared | _numbers(values, str(file.values["metric"])) | _adaptation(values))
    table.mark_measurements(("score",))
    return table


def _numbers(values: dict[str, Any], metric: str) -> dict[str, Value]:
    finite = values["loss"] is not None
    score: Value = score_of(values, metric) if finite else NOT_FINITE
    geometry = " ".join([describe_geometry(values), *(f"{key} {value}" for key, value in _settings(values).items())])
    return {"score": score, "score_geometry": geometry, "metric": metric, "loss": values["loss"]} | {
        key: values.get(key) for key in ("tokens_per_second", "tokens")
    }


def _settings(values: dict[str, Any]) -> dict[str, Value]:
    """The settings of an evaluation that learnt from the text (dynamic=, neural_cache=); empty for a plain one."""
    settings = values.get("adaptation")
    return {key: plain_value(value) for key, value in settings.items()} if isinstance(settings, dict) else {}


def _adaptation(values: dict[str, Any]) -> dict[str, Value]:
    """How an evaluation learnt, in a few words, and all its settings."""
    settings, words = _settings(values), list[str]()
    if "dynamic" in settings:
        words.append(f"{settings['dynamic']} rate {settings.get('rate')}")
    if "neural_cache" in settings:
        words.append(f"cache {settings['neural_cache']}")
    return {"learns": ", ".join(words)} | {f"adaptation.{key}": value for key, value in settings.items()}


def _adaptation_keys(files: list[ResultFile]) -> list[str]:
    """The settings of learning that any of these files has."""
    results = [values for file in files for split in SPLITS if isinstance(values := file.values.get(split), dict)]
    return list(dict.fromkeys(f"adaptation.{key}" for values in results for key in _settings(values)))


def _short_path(checkpoint: str) -> str:
    """The run folder and the checkpoint, without what is above them."""
    parts = [part for part in Path(checkpoint).parts[-4:] if part != "checkpoints"]
    return "/".join(parts[-2:])


# --------------------------------------------------------------------------- benchmarks


def inference_table(files: list[ResultFile]) -> Table | None:
    """The original's inference table, with what was published for the nearest machine; None without such rows."""
    columns = [
        Column("source", "whose", is_text=True),
        Column("model", "model", is_text=True),
        Column("Batch size", "batch", show=show_count, long="Batch size"),
        Column("Sequence length", "seq", show=show_count, long="Sequence length", rank=7),
        Column("Memory length", "mem", show=show_count, long="Memory length", rank=6),
        Column("precision", "prec", is_text=True, long="Precision"),
        Column("runtime", "runtime", is_text=True, long="Runtime"),
        Column("Throughput Avg (tok/s)", "tok/s", show=show_short, long="Throughput Avg (tok/s)"),
        *(
            Column(f"Latency {name}", f"{name} ms", show=show_fixed(1), long=f"Latency {name} (ms)", rank=i)
            for i, name in enumerate(("Avg", "90%", "95%", "99%"))
        ),
    ]
    table = Table("inference", "inference performance", columns)
    for file in files:
        for row in file.rows:
            if "latency_ms" in row and "runtime" in row:
                table.rows.append(_inference_row(row, file.machine))
                published = published_inference_rows(str(row.get("model")), row, file.machine)
                table.rows += [_published_inference(one) for one in published]
    return table if table.rows else None


def _inference_row(row: dict[str, Any], machine: str) -> dict[str, Value]:
    latency = row["latency_ms"]
    values: dict[str, Value] = {"source": f"ours, {machine}", "model": row.get("model")}
    values |= {"Batch size": row.get("batch_size"), "Sequence length": row.get("tgt_len")}
    values |= {"Memory length": row.get("mem_len"), "precision": row.get("precision"), "runtime": row["runtime"]}
    names = {"mean": "Avg", "p90": "90%", "p95": "95%", "p99": "99%"}
    values |= {f"Latency {name}": latency.get(key) for key, name in names.items()}
    return values | {"Throughput Avg (tok/s)": row.get("tokens_per_second")}


def _published_inference(row: dict[str, Any]) -> dict[str, Value]:
    names = ("model", "Batch size", "Sequence length", "Memory length", "precision", "Throughput Avg (tok/s)")
    values: dict[str, Value] = {"source": f"published, {row['machine']}", "runtime": row["implementation"]}
    values |= {name: row[name] for name in names}
    return values | {f"Latency {name}": row[f"Latency {name} (ms)"] for name in ("Avg", "90%", "95%", "99%")}


def training_benchmarks(files: list[ResultFile]) -> list[TrainingResult]:
    """The rows of `benchmark.py suite=train`, as rows of the performance table."""
    return [
        TrainingResult(
            source=f"ours, {file.machine}",
            model=str(row.get("model", "?")),
            nodes=1,
            gpus=int(row["processes"]),
            micro_batch=int(row["micro_batch_size"]),
            precision=str(row.get("precision", "fp32")),
            speed=row["tokens_per_second"],
        )
        for file in files
        for row in file.rows
        if {"processes", "micro_batch_size", "tokens_per_second"} <= row.keys()
    ]


def other_benchmarks(file: ResultFile) -> Table | None:
    """The rows of another benchmark, such as suite=encoding, with all their plain values; None without such rows."""
    rows = [row for row in file.rows if "latency_ms" not in row and "micro_batch_size" not in row]
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict | list))
    if not rows:
        return None
    columns = [Column(key, key, show=show_short, is_text=isinstance(rows[0].get(key), str)) for key in keys]
    values = [{key: plain_value(row.get(key)) if key in row else None for key in keys} for row in rows]
    return Table(file.path.stem, f"benchmark {file.path.name} on {file.machine}", columns, values)
