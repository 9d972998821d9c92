"""Short names of runs: what each has differently from the others, and its seed."""

from collections import Counter
from dataclasses import dataclass

from txl.config.differences import IGNORED_KEYS, differing_keys, group_same_differences, short_names
from txl.errors import shortened
from txl.report.grouping import distinct_settings
from txl.report.runs import RunRecord
from txl.report.tables import plain_value

MOST_KEYS = 3  # in a label
MOST_LENGTH = 60  # characters of a value


@dataclass(frozen=True)
class RunLabel:
    """How a run is called beside others."""

    setting: str  # the same for all seeds of a setting
    run: str  # unique


def label_runs(runs: list[RunRecord]) -> list[RunLabel]:
    """A label per run, such as `lr=0.01` and `lr=0.01 seed=2`, or `trial 7` for a trial of a search.

    Runs that differ in nothing are called by their name.
    """
    settings, labels = name_settings(runs), list[RunLabel]()
    studies = {run.folder.parent for run in runs if run.trial is not None}
    for i, run in enumerate(runs):
        if run.trial is not None:  # its values stand beside the trial's number
            settings[i] = f"{run.folder.parent.name} " * (len(studies) > 1) + f"trial {run.trial}"
    seeds = len({run.seed for run in runs}) > 1
    count: Counter[str] = Counter()
    for run, name in zip(runs, settings, strict=True):
        setting = name or shortened(run.name, MOST_LENGTH)
        label = f"{setting} seed={run.seed}" if seeds and run.seed is not None else setting
        count[label] += 1
        labels.append(RunLabel(setting, label if count[label] == 1 else f"{label} ({count[label]})"))
    return labels


def name_settings(runs: list[RunRecord], shown_elsewhere: tuple[str, ...] = ()) -> list[str]:
    """What each run has differently from the others, the seed aside: `lr=0.01`; empty where nothing differs.

    `shown_elsewhere`: sections and keys that stand in columns of their own.
    """
    settings, _ = distinct_settings(runs)
    differing = differing_keys(settings, (*IGNORED_KEYS, "seed", *shown_elsewhere))
    differing = [key for key in differing if key.partition(".")[0] not in shown_elsewhere]
    keys = list(group_same_differences(settings, differing))[:MOST_KEYS]
    names = short_names(keys)
    return [
        " ".join(
            f"{names[key]}={shortened(str(plain_value(values.get(key))), MOST_LENGTH)}"
            for key in keys
            if values.get(key) != ""
        )
        for values in settings
    ]
