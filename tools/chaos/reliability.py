"""Writes the tables of docs/reliability.md from the results of campaigns: python -m tools.chaos.reliability FILE..."""

import sys
from pathlib import Path

from tools.chaos.results import Results, Trial
from txl.files import PROJECT

DOCUMENT = PROJECT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tools/chaos/reliability.py -->\n", "<!-- end -->\n"
WORDS = {
    "kills": "killed at a random instant",
    "kills_at_operations": "killed before a file operation",
    "power_cuts": "power cut before a file operation",
    "faults": "a file operation fails",
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


def main(files: list[str]) -> int:
    """Replaces the part of the document between its two marks."""
    trials = [trial for file in files for trial in Results(Path(file)).trials]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(trials)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
