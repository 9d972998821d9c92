"""The table of a seed sweep: perplexity over seeds at every validation, beside the published one of the same model."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from txl.config.differences import IGNORED_KEYS
from txl.plan.published import PublishedTable, published_rows
from txl.report.grouping import all_settings
from txl.report.runs import RunRecord, describe_geometry, score_of
from txl.report.tables import Column, Spread, Table, Value, show_count, show_fixed
from txl.tracking.metrics_file import MetricsLine

PUBLISHED_DATA = "wt103"  # the data set of the published tables
TOLERANCE = 3  # published standard deviations around the published mean
PUBLISHED_LENGTHS = {"base": (192, 192), "large": (128, 640)}  # tgt_len and mem_len of the published validations


def seed_groups(runs: list[RunRecord]) -> list[list[RunRecord]]:
    """The runs that differ in nothing but the seed, in groups of at least two seeds. A run has one copy."""
    groups: dict[str, dict[Any, RunRecord]] = defaultdict(dict)
    for run in runs:
        kept = {key: value for key, value in all_settings(run).items() if key not in (*IGNORED_KEYS, "seed")}
        point = json.dumps(kept, sort_keys=True, default=str) if run.config else str(run.folder)
        if run.is_complete or run.seed not in groups[point]:
            groups[point][run.seed] = run
    return [list(members.values()) for members in groups.values() if len(members) > 1]


def stability_table(runs: list[RunRecord], name: str = "") -> Table:
    """The stability table of one group of seeds.

    Only complete runs count. A row is there where all of them have the result.

    Args:
        runs: Runs that differ in the seed alone.
        name: What distinguishes the group from others; empty for the only one.
    """
    complete = [run for run in runs if run.is_complete]
    metric = runs[0].metric
    number, fine = show_fixed(4 if metric == "bpc" else 2), show_fixed(5)
    columns = [
        Column("step", "step", show=show_count, long="Training step"),
        Column("mean", "average", show=number, long="Average perplexity" if metric == "ppl" else "Average bpc"),
        Column("sd", "sd", show=fine, long="Standard deviation"),
        Column("min", "min", show=number, long="Minimum"),
        Column("max", "max", show=number, long="Maximum"),
        Column("median", "median", show=number, long="Median"),
        Column("published", "published", show=number, long="Published average"),
        Column("verdict", "verdict", is_text=True, long="Verdict"),
        Column("split", "split", only_in_files=True),
        Column("runs", "runs", only_in_files=True),
    ]
    what = " ".join(filter(None, [str(runs[0].config.get("model.name", runs[0].name)), name]))
    table = Table("stability", f"stability of {what}, {len(complete)} seeds, {metric}", columns, title_needed=True)
    if len(complete) < 2:
        table.notes.append(f"{len(complete)} of {len(runs)} seeds finished with finite losses: no spread yet")
        return table
    published = published_stability(complete[0])
    geometries: dict[str, dict[str, None]] = {}
    lengths = set[tuple[int, int]]()
    for split, step, lines in _common_results(complete):
        lengths |= {(line.get("tgt_len", 0), line.get("mem_len", 0)) for line in lines if split == "valid"}
        geometries[split] = dict.fromkeys(describe_geometry(line) for line in lines)
        scores = [score_of(line, metric) for line in lines]
        table.rows.append(_row(split, step, scores, published.get((split, step if split == "valid" else None))))
    table.notes += [f"{split} measured with {'; '.join(found)}" for split, found in geometries.items()]
    if len(complete) < len(runs):
        table.notes.append(f"{len(runs) - len(complete)} of {len(runs)} seeds are not finished, and left out")
    table.notes += _verdict_notes(table, complete[0], bool(published), lengths)
    return table


def published_stability(run: RunRecord) -> dict[tuple[str, int | None], dict[str, Any]]:
    """The published rows for a run's model and recipe: by split, and by step for validations. Empty for other data."""
    if run.config.get("data.name") != PUBLISHED_DATA or run.metric != "ppl":
        return {}
    wanted = (run.config.get("model.name"), run.plan.get("recipe", "single_node"))
    rows = [row for row in published_rows(PublishedTable.stability) if (row["model"], row["recipe"]) == wanted]
    return {(row["split"], row["step"] if row["split"] == "valid" else None): row for row in rows}


def is_inside(mean: float, published: dict[str, Any]) -> bool:
    """Whether a mean lies within the published mean ± 3 standard deviations."""
    return bool(abs(mean - published["mean"]) <= TOLERANCE * published["sd"])


def _row(split: str, step: int, scores: list[float], published: dict[str, Any] | None) -> dict[str, Value]:
    mean = statistics.fmean(scores)
    row: dict[str, Value] = {"split": split, "step": step if split == "valid" else split, "runs": len(scores)}
    row |= {"mean": mean, "sd": statistics.stdev(scores), "min": min(scores), "max": max(scores)}
    row["median"] = statistics.median(scores)
    if published:
        row["published"] = Spread(published["mean"], published["sd"], published["runs"])
        row["verdict"] = "inside" if is_inside(mean, published) else "outside"
        if row["verdict"] == "outside":
            row["verdict"] = f"outside, {'higher' if mean > published['mean'] else 'lower'}"
    return row


def _common_results(runs: list[RunRecord]) -> Iterator[tuple[str, int, list[MetricsLine]]]:
    """(split, step, a line per run) for every validation that all runs have, then for the test."""
    by_step = [{line["step"]: line for line in run.metrics.valid if line["loss"] is not None} for run in runs]
    for step in sorted(set(by_step[0]).intersection(*by_step[1:])):
        yield "valid", step, [lines[step] for lines in by_step]
    tests = [run.test for run in runs]
    found = [line for line in tests if line is not None and line["loss"] is not None]
    if len(found) == len(runs):
        yield "test", found[0]["step"], found


def _verdict_notes(table: Table, run: RunRecord, compared: bool, lengths: set[tuple[int, int]]) -> list[str]:
    """What the comparison with the published table came to; `lengths`: tgt_len and mem_len of our validations."""
    verdicts = [str(row["verdict"]) for row in table.rows if row.get("verdict")]
    if verdicts:
        inside = verdicts.count("inside")
        notes = [f"{inside} of {len(verdicts)} rows inside the published mean ± {TOLERANCE} sd (16 seeds, DGX A100)"]
        theirs = PUBLISHED_LENGTHS.get(str(run.config.get("model.name")))
        if theirs and lengths - {theirs}:
            shown = f"tgt_len {theirs[0]} mem_len {theirs[1]}"
            notes.append(f"the published validations have {shown}: verdicts on other lengths say little")
        return notes
    model, data = run.config.get("model.name"), run.config.get("data.name")
    if compared:
        return [f"no step of the published table of {model} is among these validations"]
    return [f"nothing was published for model={model} data={data}"] if model else []
