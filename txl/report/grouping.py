"""Which runs are compared, and which share a row of the table."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from txl.config.config_hash import added_defaults
from txl.config.did_you_mean import did_you_mean
from txl.config.differences import IGNORED_KEYS, differing_keys
from txl.errors import ConfigError, shortened
from txl.report.runs import RunRecord
from txl.report.tables import Value, plain_value

COPY = "copy"  # a key of its own for a second folder of the same run


@dataclass
class Selection:
    """Which runs are compared, and how they are grouped and sorted."""

    where: list[str] = field(default_factory=list)  # key=value, all of which a run must have
    by: list[str] = field(default_factory=list)  # keys whose values make a group; none: all that differ but the seed
    sort: str | None = None  # a column or a key
    each: bool = False  # a row for every run


@dataclass
class RunGroup:
    """Runs that share a row."""

    values: dict[str, Value]  # of the columns of keys
    runs: list[RunRecord]
    of: int = 1  # how many runs have these values, with those that are not complete


def select_runs(runs: list[RunRecord], where: Iterable[str]) -> list[RunRecord]:
    """The runs for which every `key=value` holds. Numbers are compared as numbers.

    Raises:
        ConfigError: A condition is none, its key does not exist, or no run is left.
    """
    for condition in where:
        key, equals, wanted = condition.partition("=")
        if not equals or not key or key[-1] in "!<>":
            raise ConfigError(f"--where {shortened(condition)} is no condition; write key=value, as optimizer.lr=0.01")
        key = resolve_key(key, [run.config | {"state": ""} for run in runs], "--where")
        wanted = wanted.removeprefix("=")
        found = [run.state.word if key == "state" else run.config.get(key) for run in runs]
        kept = [run for run, value in zip(runs, found, strict=True) if _same(value, wanted)]
        if not kept:
            there = ", ".join(dict.fromkeys(str(plain_value(value)) for value in found))
            raise ConfigError(f"--where {shortened(condition)}: no run has it; there are {shortened(there, 120)}")
        runs = kept
    return runs


def _same(value: Any, typed: str) -> bool:
    try:
        return not isinstance(value, bool) and math.isclose(float(value), float(typed), rel_tol=1e-9)
    except (TypeError, ValueError):
        return str(plain_value(value)).lower() == typed.strip().lower()


def resolve_key(key: str, settings: list[dict[str, Any]], option: str = "--by") -> str:
    """The dotted key that was typed, perhaps without its section.

    Raises:
        ConfigError: No run has such a key, or it may mean several.
    """
    known = list(dict.fromkeys(name for values in settings for name in values))
    if key in known:
        return key
    meant = [name for name in known if name.endswith("." + key) or name == key + ".name"]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"{option} {shortened(key)} may mean {shortened(' or '.join(meant), 150)}; give one of them")
    hint = did_you_mean(key, known) if len(key) < 100 else ""
    if not hint:
        differing = ", ".join(differing_keys(settings)) or "none"
        hint = f"; keys that differ: {differing}"
    raise ConfigError(f"{option} {shortened(key)}: no run has this key{shortened(hint, 150)}")


def all_settings(run: RunRecord) -> dict[str, Any]:
    """The configuration of a run; options that came after it was written have the values that change nothing."""
    return added_defaults() | run.config if run.config else {"name": run.name}


def distinct_settings(runs: list[RunRecord]) -> tuple[list[dict[str, Any]], list[str]]:
    """The configurations of the runs, and notes about them.

    Two folders with one configuration and one seed hold the same run twice: as seeds of one group they would make
    its spread too small. One of them, a complete one if there is one, stands for the run. The others are told
    apart by their folder, as the key `copy`.
    """
    settings = [all_settings(run) for run in runs]
    same = defaultdict(list)
    for i, values in enumerate(settings):
        kept = {key: value for key, value in values.items() if key not in IGNORED_KEYS}
        same[json.dumps(kept, sort_keys=True, default=str)].append(i)
    twice = [sorted(places, key=lambda i: not runs[i].is_complete) for places in same.values() if len(places) > 1]
    if not twice:
        return settings, []
    copies = {i for places in twice for i in places[1:]}
    settings = [{**values, COPY: str(runs[i].folder) if i in copies else ""} for i, values in enumerate(settings)]
    first, second = (runs[i].folder for i in twice[0][:2])
    many = f"{len(copies)} runs have" if len(copies) > 1 else "1 run has"
    note = f"{many} the name, configuration and seed of another one, such as {second} beside {first}"
    return settings, [f"{note}: no part of a mean"]


def group_runs(
    runs: list[RunRecord], settings: list[dict[str, Any]], keys: list[str], each: bool = False
) -> list[RunGroup]:
    """Put runs with the same values together; those that are not complete stay alone.

    Args:
        runs: The runs.
        settings: Their configurations, in the same order.
        keys: The keys whose values make a group.
        each: Whether every run stays alone.
    """
    groups: dict[str, RunGroup] = {}
    count: Counter[str] = Counter()
    of_group: list[tuple[str, RunGroup]] = []
    for i, (run, values) in enumerate(zip(runs, settings, strict=True)):
        cells = {key: plain_value(values.get(key)) for key in keys}
        point = json.dumps(cells, sort_keys=True)
        count[point] += 1
        name = point if run.is_complete and not each else f"{point} {i}"
        if name in groups:
            groups[name].runs.append(run)
        else:
            groups[name] = RunGroup(cells, [run])
            of_group.append((point, groups[name]))
    for point, group in of_group:
        group.of = 1 if each else count[point]
    return list(groups.values())
