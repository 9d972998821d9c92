"""The original's tables of accuracy and speed, with our runs in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from txl.plan.published import TRAINING_MACHINES, PublishedTable, nearest_machine, published_precision, published_rows
from txl.report.runs import RunRecord, describe_geometry, score_of
from txl.report.tables import Column, Spread, Table, Value, show_count, show_fixed, show_short

FULL, MIXED = "32-bit", "mixed"  # TF32 on an A100, FP32 elsewhere; fp16 or bf16
PUBLISHED_MODELS = ("base", "large")
# Sections and keys of a configuration that say in which row and column of these tables a run stands.
PLACE_KEYS = tuple(
    """
    name model precision hardware cluster nodes gpus
    train.micro_batch_size train.micro_batch_cap train.local_batch_size train.grad_accum_steps
    """.split()
)


@dataclass(frozen=True)
class TrainingResult:
    """One training, ours or a published one."""

    source: str
    model: str
    nodes: int
    gpus: int  # in total
    micro_batch: int  # per GPU
    precision: str
    score: float | None = None  # perplexity on the test split
    minutes: float | None = None
    speed: float | None = None  # tokens per second
    measured: str = ""  # the lengths of `score`

    @property
    def is_mixed(self) -> bool:
        """Whether it belongs in the columns of mixed precision."""
        return published_precision(self.precision) == "fp16"

    @property
    def place(self) -> tuple[str, str, int, int, int]:
        """The row that it stands in."""
        return self.source, self.model, self.nodes, self.gpus, self.micro_batch


def result_of_run(run: RunRecord, setting: str = "") -> TrainingResult | None:
    """A finished run as a row of the published tables; None if something is missing that a row needs.

    `setting` distinguishes the run from those that are no other seeds of it; empty if there are none.
    """
    if run.state.word != "finished" or not run.plan.get("micro_batch_size"):
        return None
    gpu = str(run.plan.get("gpu") or run.environment.get("cpu") or "CPU")
    final: dict[str, Any] | None = run.summary.get("evaluation") or run.test
    score = score_of(final, run.metric) if final and final.get("loss") is not None and run.metric == "ppl" else None
    return TrainingResult(
        source=", ".join(filter(None, ["ours", gpu, setting])),
        model=str(run.config.get("model.name", "?")),
        nodes=run.plan.get("nodes", 1),
        gpus=run.plan.get("world_size", 1),
        micro_batch=run.plan["micro_batch_size"] * run.plan.get("grad_accum_steps", 1),
        precision=str(run.config.get("precision.name", "fp32")),
        score=score,
        minutes=run.seconds / 60 if run.seconds else None,
        speed=run.tokens_per_second,
        measured=describe_geometry(final) if final and score is not None else "",
    )


def published_results(table: PublishedTable, models: set[str], gpus: set[str]) -> list[TrainingResult]:
    """The published trainings of these models: on the machines nearest to these GPUs, or on all if none is near."""
    near = {nearest_machine(gpu, TRAINING_MACHINES) for gpu in gpus} - {None}
    return [
        TrainingResult(
            f"published, {row['machine']}",
            row["model"],
            row["nodes"],
            row["gpus"],
            row["micro_batch_size"],
            row["precision"],
            row.get("test_ppl"),
            row.get("minutes"),
            row.get("tokens_per_second"),
        )
        for row in published_rows(table)
        if row["model"] in models and (not near or row["machine"] in near)
    ]


def accuracy_table(results: list[TrainingResult], gpus: set[str]) -> Table:
    """Perplexity and time to train by precision; `gpus`: names of ours, to choose what was published."""
    table = Table("accuracy", "training accuracy", _place_columns())
    for name, title, digits in (("accuracy", "ppl", 2), ("minutes", "min", 0)):
        long = "Accuracy - {} (perplexity)" if name == "accuracy" else "Time to Train - {} (minutes)"
        table.columns += _precision_columns(name, title, long, show_fixed(digits))
    table.columns.append(Column("speedup", "speed-up", show=show_fixed(2), long="Time to Train Speedup"))
    ours = [result for result in results if result.score is not None or result.minutes is not None]
    same: dict[tuple[Any, str], list[TrainingResult]] = {}  # seeds of one setting
    for result in ours + published_results(PublishedTable.accuracy, {r.model for r in ours}, gpus):
        kind = MIXED if result.is_mixed else FULL
        row, seeds = _row_of(table, result), same.setdefault((result.place, kind), [])
        seeds.append(result)
        row[f"accuracy {kind}"] = Spread.of([one.score for one in seeds if one.score is not None])
        row[f"minutes {kind}"] = max((one.minutes for one in seeds if one.minutes is not None), default=None)
    for row in table.rows:
        row["speedup"] = _ratio(row.get(f"minutes {FULL}"), row.get(f"minutes {MIXED}"))
    measured = dict.fromkeys(result.measured for result in ours if result.measured)
    table.notes += [f"ours measured with {text}" for text in measured]
    table.notes += ["of several seeds: mean ± sd, and the time of the slowest"] if len(ours) > 1 else []
    return table


def performance_table(results: list[TrainingResult], gpus: set[str]) -> Table:
    """Throughput, speed-up of mixed precision and weak scaling; `gpus`: names of ours, as for accuracy."""
    table = Table("performance", "training performance", _place_columns())
    table.columns += _precision_columns("throughput", "tok/s", "Throughput - {} (tok/s)", show_short)
    table.columns.append(Column("speedup", "speed-up", show=show_fixed(2), long="Throughput speedup"))
    table.columns += _precision_columns("scaling", "scaling", "Weak Scaling - {}", show_fixed(2))
    ours = [result for result in results if result.speed is not None]
    for result in ours + published_results(PublishedTable.throughput, {r.model for r in ours}, gpus):
        row, key = _row_of(table, result), f"throughput {MIXED if result.is_mixed else FULL}"
        before = row.get(key)
        row[key] = max(result.speed or 0.0, before) if isinstance(before, float | int) else result.speed
    single = {_without_size(row): row for row in table.rows if row["gpus"] == row["nodes"] == 1}
    single |= {_without_size(row): row for row in table.rows if row["nodes"] == 1 and _without_size(row) not in single}
    for row in table.rows:
        row["speedup"] = _ratio(row.get(f"throughput {MIXED}"), row.get(f"throughput {FULL}"))
        for kind in (FULL, MIXED):
            one = single.get(_without_size(row), {})
            row[f"scaling {kind}"] = _ratio(row.get(f"throughput {kind}"), one.get(f"throughput {kind}"))
    table.notes.append("32-bit: TF32 on an A100 or newer, FP32 elsewhere; mixed: FP16, ours also BF16")
    table.notes.append("of several rows of ours with one place here, such as other lengths, the fastest")
    return table


def _place_columns() -> list[Column]:
    return [
        Column("source", "whose", is_text=True),
        Column("model", "model", is_text=True),
        Column("nodes", "nodes", show=show_count, rank=9, long="Nodes"),
        Column("gpus", "GPUs", show=show_count, long="GPUs"),
        Column("micro_batch", "batch", show=show_count, long="Batch Size / GPU"),
    ]


def _precision_columns(name: str, title: str, long: str, show: Callable[[float], str]) -> list[Column]:
    kinds = ((FULL, "TF32 or FP32"), (MIXED, "Mixed precision"))
    return [Column(f"{name} {kind}", f"{title} {kind}", show, long=long.format(text)) for kind, text in kinds]


def _row_of(table: Table, result: TrainingResult) -> dict[str, Value]:
    """The row of a result's place, which is made if it is missing."""
    keys = ("source", "model", "nodes", "gpus", "micro_batch")
    values: dict[str, Value] = {}
    values |= zip(keys, result.place, strict=True)
    for row in table.rows:
        if all(row[key] == value for key, value in values.items()):
            return row
    table.rows.append(dict(values))
    return table.rows[-1]


def _without_size(row: dict[str, Value]) -> tuple[Value, ...]:
    return row["source"], row["model"], row["micro_batch"]


def _ratio(above: Value, below: Value) -> float | None:
    return above / below if isinstance(above, int | float) and isinstance(below, int | float) and below else None
