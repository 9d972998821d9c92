"""The table of runs: a row per run, or per group of seeds with mean ± sd, and a column per key that differs."""

import json
import math
from collections.abc import Callable
from typing import Any

from txl.config.differences import IGNORED_KEYS, differing_keys, group_same_differences, short_names
from txl.errors import ConfigError
from txl.report.grouping import COPY, RunGroup, Selection, distinct_settings, group_runs, resolve_key, select_runs
from txl.report.runs import RunRecord, describe_geometry, score_of
from txl.report.tables import (
    NOT_FINITE,
    Column,
    Spread,
    Table,
    Value,
    mean_of,
    plain_value,
    show_count,
    show_duration,
    show_fixed,
    show_short,
)
from txl.tracking.metrics_file import MetricsLine

SORTABLE = ("valid", "test", "steps", "tokens", "seconds", "tokens_per_second", "state")
# In a narrow terminal the first key stays, the next ones go after time and speed, and further ones before all else.
KEY_RANKS, FURTHER_KEY_RANK = (0, 1, 1, 1, 1), 100
MOST_NAMED = 8  # keys that change together are named up to this number
MOST_NAMED_OF_RUN = 3  # keys by which a run is named
MOST_NOTES = 20  # about single runs
MOST_REASONS = 8  # runs whose failure is explained below the table


def compare_runs(runs: list[RunRecord], selection: Selection | None = None) -> Table:
    """The table that compares runs.

    Only complete runs are averaged: finished, with finite losses. Every other run has a row of its own.

    Raises:
        ConfigError: A key of the selection does not exist, or no run is left.
    """
    selection = selection or Selection()
    runs = select_runs(runs, selection.where)
    settings, notes = distinct_settings(runs)
    keys = [resolve_key(key, settings) for keys in selection.by for key in keys.split(",")]
    if keys and COPY in settings[0]:
        keys.append(COPY)
    hidden: dict[str, list[str]] = {}
    if not keys:
        differing = differing_keys(settings, ignored=(*IGNORED_KEYS, "seed"))
        hidden = group_same_differences(settings, differing)
        keys = list(hidden)
    groups = group_runs(runs, settings, keys, selection.each)
    metrics = {run.metric for run in runs}
    table = Table("compare", f"{len(runs)} run{'s' * (len(runs) > 1)}", _columns(keys, hidden, settings, metrics))
    if any(run.trial is not None for run in runs):
        table.columns.insert(0, Column("trial", "trial", show=show_count))
    together = [key for others in hidden.values() for key in others]
    table.rows = [_row(group, together) for group in groups]
    order = sorted(range(len(groups)), key=_sorting(table, groups, selection.sort, settings))
    table.rows, groups = [table.rows[i] for i in order], [groups[i] for i in order]
    table.best = best_row(table, groups)
    table.mark_measurements(("valid", "test"))
    table.notes += notes + _notes(table, groups, keys, hidden)
    return table


# --------------------------------------------------------------------------- columns and rows


def _columns(
    keys: list[str], hidden: dict[str, list[str]], settings: list[dict[str, Any]], metrics: set[str]
) -> list[Column]:
    score = metrics.pop() if len(metrics) == 1 else "score"
    digits = show_fixed(4 if score == "bpc" else 2)
    names = short_names(keys)
    key_columns = [
        Column(key, names[key], show=lambda value: f"{value:g}", is_text=True, rank=rank)
        for key, rank in zip(keys, [*KEY_RANKS, *range(FURTHER_KEY_RANK, FURTHER_KEY_RANK + len(keys))], strict=False)
    ]
    others = [Column(key, key, only_in_files=True) for key in (other for group in hidden.values() for other in group)]
    return [
        *key_columns,
        Column("runs", "runs", is_text=True) if "seed" in keys else Column("seed", "seed", is_text=True),
        Column("metric", "metric", is_text=True, only_in_files=score != "score"),
        Column("valid", f"valid {score}", show=digits),
        Column("test", f"test {score}", show=digits),
        Column("steps", "step", show=show_count, rank=2),
        Column("tokens", "tokens", show=show_short, rank=5),
        Column("seconds", "time", show=show_duration, rank=3),
        Column("tokens_per_second", "tok/s", show=show_short, rank=4),
        Column("state", "state", is_text=True),
        *others,
        *(Column(key, key, only_in_files=True) for key in ("valid_loss", "test_loss", "best_step")),
        *(Column(key, key, only_in_files=True) for key in ("valid_geometry", "test_geometry", "max_step", "why")),
        Column("folder", "folder", only_in_files=True, is_text=True),
    ]


def _row(group: RunGroup, together: list[str]) -> dict[str, Value]:
    """The cells of a group; `together`: keys that change with those of its columns."""
    run, many = group.runs[0], len(group.runs) > 1
    row = group.values | {key: plain_value(run.config.get(key)) for key in together}
    seeds = "seeds" if len({run.seed for run in group.runs}) == len(group.runs) else "runs"
    count = "runs" if "seed" in group.values else "seed"
    if len(group.runs) < group.of and (many or run.is_complete):
        row[count] = f"{len(group.runs)} of {group.of}"
    elif many or count == "seed":
        row[count] = f"{len(group.runs)} {seeds}" if many else run.seed
    row["trial"] = None if many else run.trial
    row["metric"] = run.metric if len({run.metric for run in group.runs}) == 1 else "mixed"
    for name, lines in (("valid", [run.best for run in group.runs]), ("test", [run.test for run in group.runs])):
        row |= _results(name, lines, group.runs)
    for key in ("steps", "tokens", "seconds", "tokens_per_second"):
        row[key] = _mean([getattr(run, key) for run in group.runs])
    steps = {run.steps for run in group.runs}
    row["steps"] = f"{min(steps)}-{max(steps)}" if len(steps) > 1 else steps.pop() or None
    row["best_step"] = _mean([run.best["step"] if run.best else None for run in group.runs])
    row["state"] = run.state.word if run.state.is_over else f"{run.state.word} {progress_percent(run)}".rstrip()
    row |= {"why": run.state.why, "max_step": run.max_step}
    row["folder"] = " ".join(str(run.folder) for run in group.runs)
    return row


def progress_percent(run: RunRecord) -> str:
    """How far a run is: `50%`; empty if that is not known."""
    return f"{100 * run.steps // run.max_step}%" if run.max_step and run.steps else ""


def _results(name: str, lines: list[MetricsLine | None], runs: list[RunRecord]) -> dict[str, Value]:
    """The cells of a split: score, loss and how they were measured. Runs without a result leave the cells empty."""
    if name == "valid" and not any(lines) and any(run.metrics.valid or run.metrics.train.not_finite for run in runs):
        return {name: NOT_FINITE}
    found = [line for line in lines if line is not None]
    if not found or len(found) < len(lines):
        return {}
    geometries = dict.fromkeys(describe_geometry(line) for line in found)
    if any(line["loss"] is None for line in found):
        return {name: NOT_FINITE, f"{name}_geometry": "; ".join(geometries)}
    if len(geometries) > 1 or len({run.metric for run in runs}) > 1:
        return {name: "differs"}  # a mean over different measurements says nothing
    scores = [score_of(line, run.metric) for line, run in zip(found, runs, strict=True)]
    losses = [line["loss"] for line in found]
    return {name: Spread.of(scores), f"{name}_loss": Spread.of(losses), f"{name}_geometry": next(iter(geometries))}


def _mean(values: list[float | None]) -> Value:
    """The mean, without its spread; None if a run does not have the value."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found and len(found) == len(values) else None


# --------------------------------------------------------------------------- order, the best, notes


def _sorting(
    table: Table, groups: list[RunGroup], sort: str | None, settings: list[dict[str, Any]]
) -> Callable[[int], Any]:
    """The key by which rows are sorted: their places are what it gets.

    Raises:
        ConfigError: The column does not exist.
    """
    names = {column.key: column.key for column in table.columns} | {c.title: c.key for c in table.columns}
    if sort is None:
        comparable = len({(run.metric, run.config.get("data.name")) for group in groups for run in group.runs}) == 1
        key = "valid" if comparable else ""
    elif sort in names:
        key = names[sort]
    else:
        try:
            key = resolve_key(sort, settings, "--sort")
        except ConfigError as error:
            raise ConfigError(f"{error}; columns are {', '.join(SORTABLE)}") from None

    def place(i: int) -> tuple[bool, bool, float, str, float]:
        run = groups[i].runs[0]
        value = table.rows[i].get(key, plain_value(run.config.get(key)) if key else "")
        number = mean_of(value)
        missing = number is None if key == "valid" else value in (None, "")
        unfinished = key == "valid" and not run.is_complete
        return unfinished, missing, number or 0.0, "" if number is not None else str(value), run.seed or 0

    return place


def best_row(table: Table, groups: list[RunGroup]) -> int | None:
    """The complete row with the lowest validation score, if all were measured alike; None if it has no rival."""
    rows = [i for i, group in enumerate(groups) if group.runs[0].is_complete and _has_score(table.rows[i])]
    alike = {(table.rows[i].get("valid_geometry"), groups[i].runs[0].config.get("data.name")) for i in rows}
    alike_metric = {table.rows[i].get("metric") for i in rows}
    if len(rows) < 2 or len(alike) > 1 or len(alike_metric) > 1:
        return None
    return min(rows, key=lambda i: mean_of(table.rows[i]["valid"]) or math.inf)


def _has_score(row: dict[str, Value]) -> bool:
    """Whether a row can be the best: it has a validation score, and is no copy of a run."""
    return bool(mean_of(row.get("valid"))) and not row.get(COPY)


def _notes(table: Table, groups: list[RunGroup], keys: list[str], hidden: dict[str, list[str]]) -> list[str]:
    notes = [f"change together with {key}: {_named(others)}" for key, others in hidden.items() if others]
    if table.best is not None and len({json.dumps(group.values) for group in groups}) > 1:
        notes += _verdict(table, keys)
    if any(len({run.seed for run in group.runs}) < len(group.runs) for group in groups):
        notes.append("some rows average runs that differ in more than the seed (--each shows every run)")
    notes += _reasons(groups)
    about_runs = [note for group in groups for run in group.runs for note in _notes_on_metrics(group, run)]
    more = len(about_runs) - MOST_NOTES
    return notes + about_runs[:MOST_NOTES] + ([f"... and {more} more of these"] if more > 0 else [])


def _reasons(groups: list[RunGroup]) -> list[str]:
    """Why runs wait or did not finish; those with one reason share a line."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        run = group.runs[0]
        if run.state.why:
            place = f"{_point_of(group, run)} at step {run.steps}"
            reasons.setdefault((run.state.word, run.state.why), []).append(place)
    notes = [
        f"{word}: {places[0] if len(places) == 1 else f'{len(places)} runs'}: {why}"
        for (word, why), places in list(reasons.items())[:MOST_REASONS]
    ]
    more = len(reasons) - MOST_REASONS
    return notes + ([f"... and {more} other reasons; --csv has every one"] if more > 0 else [])


def _point_of(group: RunGroup, run: RunRecord) -> str:
    """What a run is called in a note: its values of the table's keys, and its seed."""
    point = [f"{key}={value}" for key, value in group.values.items() if value != ""]
    point += [f"seed={run.seed}"] if "seed" not in group.values and run.seed is not None else []
    return " ".join(point) or run.folder.name


def _notes_on_metrics(group: RunGroup, run: RunRecord) -> list[str]:
    point, notes, last = _point_of(group, run), list[str](), run.metrics.train.last or {}
    for what, steps in (("loss not finite", run.metrics.train.not_finite), ("loss spike", run.metrics.train.spikes)):
        if steps:
            later = f", and in {len(steps) - 1} later records" if len(steps) > 1 else ""
            notes.append(f"{point}: {what} at step {steps[0]}{later}")
    if last.get("rollbacks"):
        notes.append(f"{point}: went back to a checkpoint {last['rollbacks']} times after it had diverged")
    return notes + run.notes


def _named(keys: list[str]) -> str:
    more = len(keys) - MOST_NAMED
    return ", ".join(keys[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _verdict(table: Table, keys: list[str]) -> list[str]:
    """Which row is best and which is next, and whether a run that has not finished is better so far."""
    assert table.best is not None
    column = next(column for column in table.columns if column.key == "valid")
    best, others = table.rows[table.best], [row for i, row in enumerate(table.rows) if i != table.best]
    others = sorted(filter(_has_score, others), key=lambda row: mean_of(row["valid"]) or 0.0)
    second = next(row for row in others if row["state"] == "finished")

    def named(row: dict[str, Value]) -> str:
        is_trial = row.get("trial") is not None
        shown = [key for key in keys if key != COPY][: MOST_NAMED if is_trial else MOST_NAMED_OF_RUN]
        point = " ".join(f"{key}={Column(key, key, show=lambda v: f'{v:g}').text(row[key])}" for key in shown)
        return f"trial {row['trial']}: {point}" if is_trial else point

    text = f"best: {named(best)}, {column.title} {column.text(best['valid'])}"
    text += f"; next: {named(second)}, {column.text(second['valid'])}"
    notes = [text + _distance(best["valid"], second["valid"])]
    lowest, bound = others[0], mean_of(best["valid"]) or 0.0
    if lowest["state"] != "finished" and (mean_of(lowest["valid"]) or math.inf) < bound:
        notes.append(f"not finished, but lower already: {named(lowest)}, {column.text(lowest['valid'])}")
    return notes


def _distance(best: Value, second: Value) -> str:
    """Whether the seeds spread less than the means of two rows differ."""
    if not (isinstance(best, Spread) and isinstance(second, Spread)):
        return "" if isinstance(best, Spread) or isinstance(second, Spread) else "; one seed each says little"
    apart = second.mean - best.mean
    noise = math.hypot(*(spread.sd / math.sqrt(spread.n) for spread in (best, second)))
    if not noise:
        return ""
    far = f"{apart / noise:.1f} standard errors apart"
    return f"; {far}" if apart > 2 * noise else f"; within the noise of the seeds ({far})"
