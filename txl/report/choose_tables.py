"""Which tables a report has: those that were asked for, or those that its runs and files can fill."""

from dataclasses import dataclass, field

from txl.errors import ConfigError
from txl.report.compare import compare_runs
from txl.report.grouping import Selection, select_runs
from txl.report.labels import label_runs, name_settings
from txl.report.published_tables import PLACE_KEYS, PUBLISHED_MODELS, accuracy_table, performance_table, result_of_run
from txl.report.result_files import (
    ResultFile,
    evaluations_of_runs,
    evaluations_table,
    inference_table,
    other_benchmarks,
    training_benchmarks,
)
from txl.report.runs import RunRecord
from txl.report.stability import seed_groups, stability_table
from txl.report.studies import studies_of_runs, study_tables
from txl.report.tables import Table

TABLES = ("compare", "study", "stability", "accuracy", "performance", "evaluations", "inference")


@dataclass
class ReportInput:
    """What a report is made of."""

    runs: list[RunRecord]
    files: list[ResultFile] = field(default_factory=list)

    def selected(self, selection: Selection) -> list[RunRecord]:
        """The runs for which the conditions hold."""
        return select_runs(self.runs, selection.where) if self.runs else []


def choose_tables(given: ReportInput, selection: Selection, wanted: list[str], everything: bool = False) -> list[Table]:
    """The tables that `wanted` names; if it is empty, all that say something.

    Args:
        given: Runs and files.
        selection: Which runs are compared, and how.
        wanted: Of TABLES.
        everything: Also what a reader of a terminal did not ask for: the stability of every setting of a sweep, and
            the published tables.

    Raises:
        ConfigError: A table was asked for and has no rows, or the selection has a mistake.
    """
    runs = given.selected(selection)
    evaluations = [file for file in given.files if not file.is_benchmark] + evaluations_of_runs(runs)
    benchmarks = [file for file in given.files if file.is_benchmark]
    groups = seed_groups(runs)
    tables: list[Table] = []
    if runs and _asked("compare", wanted):
        tables.append(compare_runs(given.runs, selection))
    if _asked("study", wanted):
        tables += study_tables(studies_of_runs(runs))
    if "stability" in wanted or (not wanted and (everything or len(groups) == 1 and len(groups[0]) == len(runs))):
        tables += _stability(groups, runs)
    settings = name_settings(runs, PLACE_KEYS)
    results = [one for run, name in zip(runs, settings, strict=True) if (one := result_of_run(run, name))]
    known = everything and not wanted and any(result.model in PUBLISHED_MODELS for result in results)
    gpus = {str(run.plan["gpu"]) for run in runs if run.plan.get("gpu")} | {file.machine for file in benchmarks}
    if "accuracy" in wanted or known:
        tables.append(accuracy_table(results, gpus))
    if "performance" in wanted or known or (not wanted and training_benchmarks(benchmarks)):
        tables.append(performance_table(results + training_benchmarks(benchmarks), gpus))
    if evaluations and _asked("evaluations", wanted):
        tables.append(evaluations_table(evaluations))
    inference = inference_table(benchmarks)
    if inference and _asked("inference", wanted):
        tables.append(inference)
    if not wanted:
        tables += [table for file in benchmarks if (table := other_benchmarks(file))]
    tables = [table for table in tables if table.rows or table.name == "stability"]
    if not tables:
        raise ConfigError(f"--table {' --table '.join(wanted) or 'compare'}: these paths hold nothing for it")
    return tables


def _asked(name: str, wanted: list[str]) -> bool:
    return not wanted or name in wanted


def _stability(groups: list[list[RunRecord]], runs: list[RunRecord]) -> list[Table]:
    labels = {id(run): label.setting for run, label in zip(runs, label_runs(runs), strict=True)}
    tables = [stability_table(group, labels[id(group[0])] if len(groups) > 1 else "") for group in groups]
    for i, table in enumerate(tables[1:], 2):
        table.name = f"stability_{i}"
    return tables
