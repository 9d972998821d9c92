"""Writes the tables of docs/reliability.md from the results of campaigns.

python -m tools.chaos.reliability                          what lies in runs/
python -m tools.chaos.reliability --trials FILE... --fuzz FILE --long FILE
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tools.chaos.results import Results, Trial
from txl.files import PROJECT, read_json

DOCUMENT = PROJECT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tools/chaos/reliability.py -->\n", "<!-- end -->\n"
WORDS = {
    "kills": "killed at a random instant",
    "kills_at_operations": "killed before a file operation",
    "power_cuts": "power cut before a file operation",
    "faults": "a file operation fails",
}
INPUTS = {
    "configurations": "command lines of train, evaluate and benchmark",
    "files": "files of runs, caches, imports and archives with random damage",
    "texts": "texts in every language and encoding",
    "damages": "every file of a run, cache, import and archive with each kind of damage",
}


def table(trials: list[Trial]) -> str:
    """A row per campaign and fault: how often, on how many kinds of runs, what was lost, when it was noticed."""
    rows = ["| campaign | fault | runs | kinds of runs | not equal | steps lost, at most | end noticed, at most |"]
    rows.append("|---|---|---|---|---|---|---|")
    for campaign, fault in sorted({(trial.campaign, trial.fault) for trial in trials}):
        of = [trial for trial in trials if (trial.campaign, trial.fault) == (campaign, fault)]
        noticed = max(trial.noticed for trial in of)
        cells = [WORDS[campaign], fault, f"{len(of)}", f"{len({trial.case for trial in of})}"]
        cells += [f"{sum(trial.problem is not None for trial in of)}", f"{max(trial.lost for trial in of)}"]
        rows.append(f"| {' | '.join([*cells, f'{noticed:.1f} s' if noticed else '-'])} |")
    hit = sum(trial.disturbed for trial in trials)
    problems = sum(trial.problem is not None for trial in trials)
    end = f"{len(trials)} trials, of which {hit} disturbed a run before its end; {problems} with a difference."
    return "\n".join([*rows, "", end, ""])


def fuzz_table(tried: dict[str, Any]) -> str:
    """A row per kind of input: how many were tried, and how many were not answered in one short line."""
    rows = ["| input | tried | not answered in one short line |", "|---|---|---|"]
    for kind, state in tried.items():
        rows.append(f"| {INPUTS[kind]} | {state['tried']:,} | {len(state['failures'])} |")
    return "\n".join([*rows, ""])


def long_run_table(figures: dict[str, Any]) -> str:
    """What tools/long_run.py measured: the long run's first and last tenth, and the long record."""
    rows = []
    if run := figures.get("run"):
        words = {"rss_mb": "memory, MB", "files": "files in the run folder", "open_files": "open files"}
        words |= {"steps_per_cpu_second": "steps per second of the processor"}
        rows += [f"| {run['steps']:,} steps of a tiny model | first tenth | last tenth |", "|---|---|---|"]
        rows += [f"| {words[key]} | {run[key]['first']:,.0f} | {run[key]['last']:,.0f} |" for key in words]
        rows += [f"| logs at most, bytes | {run['log_bytes']:,} | |", ""]
    if record := figures.get("record"):
        rows += [
            f"| seconds of the processor | a short run | `metrics.jsonl` of {record['lines']:,} lines |",
            "|---|---|---|",
        ]
        for key, name in (("resume", "resume: the record is read and cut back"), ("report", "`txl report`")):
            rows.append(f"| {name} | {record[f'{key}_short'][0]:.2f} | {record[f'{key}_long'][0]:.2f} |")
    return "\n".join([*rows, ""])


def main() -> int:
    """Replaces the part of the document between its two marks."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos.reliability", description=__doc__)
    runs = PROJECT / "runs"
    parser.add_argument("--trials", type=Path, nargs="+", default=[runs / "chaos" / "trials.jsonl"])
    parser.add_argument("--fuzz", type=Path, default=runs / "fuzz.json")
    parser.add_argument("--long", type=Path, default=runs / "long_run" / "figures.json")
    options = parser.parse_args()
    trials = [trial for file in options.trials for trial in Results(file).trials]
    parts = [table(trials), fuzz_table(read_json(options.fuzz) or {}), long_run_table(read_json(options.long) or {})]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text("\n".join([before + BEGIN, *parts, END + after]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
