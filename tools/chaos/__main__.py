"""Disturbs tiny runs in every way, continues them, and compares them with undisturbed ones, bit by bit.

python -m tools.chaos                      all campaigns: hours; continues where it was stopped
python -m tools.chaos --campaign kills --trials 100 --cases plain,two_processes
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.chaos.shim import Shim, reexec_with_shim

CAMPAIGNS = ("kills", "kills_at_operations", "power_cuts", "faults")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("runs/chaos/trials.jsonl"), help="results; continued")
    parser.add_argument("--campaign", choices=CAMPAIGNS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--cases", default="", help="only these kinds of runs, separated by commas")
    parser.add_argument("--trials", type=int, default=600, help="kills at random instants")
    parser.add_argument("--sample", type=int, help="disturb so many file operations of each case; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs are made; default: a temporary folder, a fast one")
    return parser.parse_args()


def main() -> int:
    """Run the campaigns; returns 1 if a trial showed a problem."""
    options = parse_arguments()
    reexec_with_shim()
    from tools.chaos import campaigns
    from tools.chaos.cases import CASES
    from tools.chaos.processes import ForkedRuns, warm_up
    from tools.chaos.results import Results, Trial

    warm_up()
    results = Results(options.results)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    cases = options.cases.split(",") if options.cases else list(CASES)
    runs = ForkedRuns(Shim(), folder / "output.txt")
    workshop = campaigns.Workshop(runs, folder, results, options.seed, options.sample)
    chosen: dict[str, Iterator[Trial]] = {
        "kills": campaigns.kills(workshop, options.trials, cases),
        "kills_at_operations": campaigns.kills_at_operations(workshop, cases),
        "power_cuts": campaigns.power_cuts(workshop, cases),
        "faults": campaigns.faults(workshop, cases),
    }
    began = time.monotonic()
    trials = itertools.chain.from_iterable(chosen[name] for name in options.campaign or chosen)
    for made, trial in enumerate(trials, start=1):
        results.add(trial)
        if trial.problem:
            print(f"PROBLEM {trial.campaign} {trial.case} {trial.name}: {trial.problem}", flush=True)
        if made % 25 == 0:
            print(f"{made} trials, {time.monotonic() - began:.0f} s", flush=True)
    problems = sum(trial.problem is not None for trial in results.trials)
    print(f"{len(results.trials)} trials, {problems} with a problem: {options.results}", flush=True)
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
