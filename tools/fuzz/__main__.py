"""Inputs of every kind, made from seeds: each must succeed or be refused in one short line, soon.

python -m tools.fuzz                                 all kinds; continues where it was stopped
python -m tools.fuzz --kind configurations --seeds 100:200
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tools.fuzz.answers import Failure, show

Problem = Callable[[int], tuple[str, str | None]]  # a seed -> the input, and what is wrong with its answer

SEEDS = {"configurations": 20_000, "files": 3_000, "texts": 5_000, "damages": 2_000}  # damages: as many as there are
SAVED_EVERY = 100  # seeds


def main() -> int:
    """Runs the chosen kinds; returns 1 if an input was not answered as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("runs/fuzz.json"), help="results; continued")
    parser.add_argument("--kind", choices=SEEDS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--seeds", help="FIRST:END; the results are not continued then")
    options = parser.parse_args()
    results = options.results.absolute()
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")
    found = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)  # what a run would write by mistake
        for kind in options.kind or SEEDS:
            found += run_kind(kind, problems_of(kind, Path(folder)), options.seeds, results)
        os.chdir("/")
    return int(found > 0)


def problems_of(kind: str, folder: Path) -> Problem:
    """The generator of a kind of input, which also judges the answer."""
    if kind == "configurations":
        from tools.fuzz.configurations import problem_of_command_line

        return problem_of_command_line
    if kind == "damages":
        from tools.fuzz.every_damage import EveryDamage

        every = EveryDamage(folder)
        SEEDS[kind] = len(every.all)
        return every.problem
    if kind == "texts":
        from tools.fuzz.texts import TextFuzz

        return TextFuzz(folder).problem
    from tools.fuzz.files import FileFuzz

    return FileFuzz(folder).problem


def run_kind(kind: str, problem: Problem, seeds: str | None, results: Path) -> int:
    """Try a range of seeds; returns the number of failures, earlier ones included."""
    saved = json.loads(results.read_text()) if results.exists() and not seeds else {}
    state = saved.setdefault(kind, {"tried": 0, "failures": []})
    first, end = map(int, seeds.split(":")) if seeds else (state["tried"], SEEDS[kind])
    for seed in range(first, end):
        given, wrong = problem(seed)
        state["tried"] = seed + 1
        if wrong:
            failure = Failure(kind, seed, given, wrong)
            show(failure)
            state["failures"].append(asdict(failure))
        if not seeds and (wrong or state["tried"] % SAVED_EVERY == 0 or seed == end - 1):
            results.parent.mkdir(parents=True, exist_ok=True)
            results.with_suffix(".partial").write_text(json.dumps(saved, indent=1))
            os.replace(results.with_suffix(".partial"), results)
    failures = len(state["failures"])
    print(f"{kind}: {state['tried'] if not seeds else end - first} tried, {failures} failures", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
