"""The studies of `txl search`: how much each key decides, and the trials as lines across its values (study.json)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from txl.config.differences import short_names
from txl.files import read_json, short_path
from txl.report.runs import RunRecord
from txl.report.tables import Column, Table

STUDY = "study.json"
FEW_TRIALS = 10  # with fewer complete ones, importances are mostly chance
STATES = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "not ended"}


@dataclass(frozen=True)
class SearchedKey:
    """A key that was searched: a range of numbers, or choices."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool
    choices: list[str]  # empty: a range

    def describe(self) -> str:
        """Where it was searched: `0.0001 to 0.01, by logarithm`, or the choices."""
        if self.choices:
            return ", ".join(self.choices)
        kind = ", by logarithm" if self.log else ", whole numbers" if self.whole else ""
        return f"{self.low:g} to {self.high:g}{kind}"


@dataclass(frozen=True)
class Trial:
    """A trial of a study; losses are nats per token."""

    number: int
    folder: str
    state: str  # one of the values of STATES
    values: dict[str, Any]
    loss: float | None  # the best validation, of a complete trial
    last_loss: float | None  # the last validation
    step: int | None  # of the last validation

    def value(self, key: str) -> str:
        """Its value of a key, for a reader."""
        value = self.values.get(key)
        return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class StudyRecord:
    """What study.json says."""

    folder: Path
    keys: list[SearchedKey]
    trials: list[Trial]
    importances: dict[str, float]  # by key; empty with less than two complete trials
    importances_by: str

    @property
    def best(self) -> Trial | None:
        """The complete trial with the lowest loss."""
        found = [(trial.loss, trial.number, trial) for trial in self.trials if trial.loss is not None]
        return min(found)[2] if found else None


def read_study(folder: Path) -> StudyRecord | None:
    """The study in a folder; None if it holds none, or a damaged one."""
    values = read_json(folder / STUDY)
    try:
        keys = [_read_key(one) for one in values["space"]]
        trials = [_read_trial(one) for one in values["trials"]]
        importances = {str(key): float(share) for key, share in values["importances"].items()}
        return StudyRecord(folder, keys, trials, importances, str(values["importances_by"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _read_key(one: dict[str, Any]) -> SearchedKey:
    numbers, choices = (float(one["low"]), float(one["high"])), [str(choice) for choice in one["choices"]]
    return SearchedKey(str(one["key"]), *numbers, bool(one["log"]), bool(one["whole"]), choices)


def _read_trial(one: dict[str, Any]) -> Trial:
    loss, last, step = one["loss"], one["last_loss"], one["step"]
    return Trial(
        int(one["number"]),
        str(one["folder"]),
        STATES[one["state"]],
        dict(one["values"]),
        None if loss is None else float(loss),
        None if last is None else float(last),
        None if step is None else int(step),
    )


def studies_of_runs(runs: Iterable[RunRecord]) -> list[StudyRecord]:
    """The studies whose trials these runs are, each once; of the trials those that are among the runs."""
    folders: dict[Path, set[str]] = {}
    for run in runs:
        if run.trial is not None:
            folders.setdefault(run.folder.parent, set()).add(run.folder.name)
    found = []
    for folder, names in folders.items():
        study = read_study(folder)
        trials = [trial for trial in study.trials if trial.folder in names] if study else []
        if study and trials:
            found.append(replace(study, trials=trials))
    return found


def study_table(study: StudyRecord) -> Table:
    """A row per key that was searched: where it was searched, its value in the best trial, and its importance."""
    columns = [
        Column("key", "key", is_text=True, narrowest=20),
        Column("searched", "searched", is_text=True, narrowest=20),
        Column("best", "best", is_text=True),
        Column("importance", "importance", show=lambda share: f"{100 * share:.0f} %"),
    ]
    best = study.best
    table = Table("study", f"study {study.folder.name}", columns)
    for one in sorted(study.keys, key=lambda one: -study.importances.get(one.key, 0.0)):
        value = best.value(one.key) if best else None
        importance = study.importances.get(one.key)
        table.rows.append({"key": one.key, "searched": one.describe(), "best": value, "importance": importance})
    counts = {word: sum(trial.state == word for trial in study.trials) for word in STATES.values()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    table.notes.append(f"{len(study.trials)} trials: {told}")
    if best:
        place = short_path(study.folder / best.folder)
        table.notes.append(f"best: trial {best.number}, valid loss {best.loss:.4f}, {place}")
    if study.importances:
        few = "; of so few trials it says little" if counts["complete"] < FEW_TRIALS else ""
        table.notes.append(f"importance: {study.importances_by}, over {counts['complete']} complete trials{few}")
    return table


def study_tables(studies: list[StudyRecord]) -> list[Table]:
    """The tables of several studies, whose names differ."""
    tables = [study_table(study) for study in studies]
    for i, table in enumerate(tables[1:], 2):
        table.name = f"study_{i}"
    return tables


def plotted_study(study: StudyRecord) -> dict[str, Any]:
    """What the page needs to draw the trials as lines across an axis per key and one for the loss."""
    names, best = short_names([one.key for one in study.keys]), study.best
    return {
        "axes": [
            {"key": one.key, "name": names[one.key], "choices": one.choices}
            | {"low": one.low, "high": one.high, "log": one.log, "whole": one.whole}
            for one in study.keys
        ],
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "loss": trial.last_loss if trial.loss is None else trial.loss,
                "step": trial.step,
                "values": [trial.values.get(one.key) for one in study.keys],
                "best": trial is best,
            }
            for trial in study.trials
        ],
    }
