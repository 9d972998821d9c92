"""Is this tree as fast as another revision was? Both take turns, so that what else the machine does meets both.

    make speed REV=v0.1.0                   # a quarter of an hour on a quiet machine with two cores
    python tools/speed.py HEAD~5 --only train resume --rounds 5

Every task is a process. The table tells the median seconds of both, and their ratio: above 1, this tree is faster. The
second ratio is of CPU seconds, which other work on the machine disturbs less. `train`, `infer` and `encode` count what
the benchmark itself measured, without the start of its process; their CPU seconds are of the whole process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # this is run as a script

from tests.support.made_data import write_corpus  # noqa: E402
from tests.support.revisions import checked_out, short_commit  # noqa: E402
from tests.support.tiny_runs import TINY_RUN  # noqa: E402
from txl.system.hardware import cpu_model  # noqa: E402

SHORT_RUN = [*TINY_RUN, "scheduler.max_step=1000"]  # the beginning of a longer curve


@dataclass
class Tree:
    """A checkout, the folder that it works in, and what its tasks took."""

    project: Path
    work: Path
    text: list[str]  # options that name a small corpus
    layers: int  # of the models in the benchmarks
    words: int  # in the vocabulary of the large checkpoint
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, script: str, *overrides: str) -> float:
        """Run an entry point to its end; returns the wall seconds."""
        self.work.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(self.project), "TXL_CACHE": str(self.work / "cache")}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(self.project / script), *overrides],
            cwd=self.work, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"error: {' '.join(done.args)}\n{done.stdout}\n{done.stderr}")
        return time.perf_counter() - began

    def benchmark(self, *overrides: str) -> list[dict[str, Any]]:
        """The rows of a benchmark of the base model, cut to `layers` layers."""
        self.run("benchmark.py", "hardware=cpu", "model=base", f"model.n_layer={self.layers}", *overrides,
                 "benchmark.json=rows.json")  # fmt: skip
        rows: list[dict[str, Any]] = json.loads((self.work / "rows.json").read_text())["rows"]
        return rows

    def measure(self, name: str) -> None:
        """Do a task once and keep what it took; its preparation, before the first time, does not count."""
        if name in PREPARATIONS and name not in self.seconds:
            PREPARATIONS[name](self)
        used = children_cpu_seconds()
        seconds = TASKS[name](self)
        self.seconds.setdefault(name, []).append(seconds)
        self.cpu_seconds.setdefault(name, []).append(children_cpu_seconds() - used)


def children_cpu_seconds() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --------------------------------------------------------------------------- the tasks


def train(tree: Tree) -> float:
    """A training step, micro-batch 2."""
    sizes = ["benchmark.micro_batch_sizes=[2]", "benchmark.steps=4", "benchmark.warmup_steps=2"]
    return float(tree.benchmark("suite=train", *sizes)[0]["step_seconds"])


def infer(tree: Tree) -> float:
    """A segment of the cached runtime, one text, with its losses."""
    sizes = ["benchmark.batch_sizes=[1]", "benchmark.runtimes=[cached]", "benchmark.segments=10"]
    return float(tree.benchmark("suite=inference", *sizes)[0]["latency_ms"]["p50"]) / 1000


def encode(tree: Tree) -> float:
    """Twenty megabytes of text to ids, one process."""
    rows = tree.benchmark("suite=encoding", "benchmark.megabytes=20")
    return float(next(row["seconds"] for row in rows if (row["task"], row["processes"]) == ("encode", 1)))


def show_help(tree: Tree) -> float:
    """`train.py --help`."""
    return tree.run("train.py", "--help")


def dry_run(tree: Tree) -> float:
    """The plan of a training."""
    return tree.run("train.py", *TINY_RUN, *tree.text, "dry_run=true")


def first_step(tree: Tree) -> float:
    """From the command to the end of one step of a tiny model; the data are in the cache after the first round."""
    return tree.run("train.py", *SHORT_RUN, *tree.text, "train.max_step=1", "debug=true", "valid.enabled=false")


def resume(tree: Tree) -> float:
    """One step more from a checkpoint of a model with many words."""
    done = 1 + len(tree.seconds.get("resume", ()))
    return tree.run("train.py", *large_run(tree), f"train.max_step={done + 1}", "resume=auto")


def report(tree: Tree) -> float:
    """The table of a run with a long record."""
    return tree.run("txl/report/__main__.py", str(tree.work / "long"))


def prepare_resume(tree: Tree) -> None:
    """Write a text with many words, and a checkpoint after one step on it."""
    tree.work.mkdir(parents=True, exist_ok=True)
    numbers = (7919 * i % tree.words for i in range(4 * tree.words))
    (tree.work / "words.txt").write_text(" ".join(f"w{number}" for number in numbers))
    tree.run("train.py", *large_run(tree), "train.max_step=1")


def large_run(tree: Tree) -> list[str]:
    """Options of the training whose checkpoint is resumed."""
    text = [f"data.{split}={tree.work / 'words.txt'}" for split in ("train", "valid", "test")]
    given = ["data=text", "data.vocab=word", *text, "data.cutoffs=[]", "model.d_model=256", "checkpoint.keep=1"]
    return [*SHORT_RUN, *given, f"run_dir={tree.work / 'large'}", "valid.enabled=false"]


def prepare_report(tree: Tree) -> None:
    """Train a few steps and make the record of 50,000 of them."""
    folder = tree.work / "long"
    tree.run("train.py", *SHORT_RUN, *tree.text, "train.max_step=4", f"run_dir={folder}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    many = [steps[0] | {"step": step} for step in range(1, 50_001)]
    others = [record for record in records if record["kind"] != "train"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in many + others))


PREPARATIONS: dict[str, Callable[[Tree], None]] = {"resume": prepare_resume, "report": prepare_report}
TASKS: dict[str, Callable[[Tree], float]] = {
    "train": train, "infer": infer, "encode": encode, "help": show_help, "dry_run": dry_run,
    "first_step": first_step, "resume": resume, "report": report,
}  # fmt: skip


# --------------------------------------------------------------------------- the table


def main() -> int:
    """Measure both trees in turn and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="a revision that git knows")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK",
                        help=f"some of {' '.join(TASKS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="how often each tree does each task (3)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the models in the benchmarks (4)")
    parser.add_argument("--words", type=int, default=100_000, help="vocabulary of the large checkpoint (100,000)")
    given = parser.parse_args()
    commit = short_commit(given.rev)
    if commit is None:
        parser.error(f"{given.rev}: git knows no such revision")
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        text = [option for option in write_corpus(folder / "text", 2000) if not option.startswith("data.cache=")]
        with checked_out(given.rev, folder / "checkout") as checkout:
            old = Tree(checkout, folder / "old", text, given.layers, given.words)
            new = Tree(PROJECT, folder / "new", text, given.layers, given.words)
            print(f"this tree beside {commit}, {cpu_model()}, {given.rounds} rounds in turn")
            print("| task | seconds before | now | before / now | range of rounds | CPU before / now |")
            print("|---|" + "---:|" * 5, flush=True)
            for task in given.only:
                for turn in range(given.rounds):
                    for tree in (old, new) if turn % 2 == 0 else (new, old):
                        tree.measure(task)
                print(table_row(task, old, new), flush=True)
    return 0


def table_row(task: str, old: Tree, new: Tree) -> str:
    """One line of the table. The range is that of the rounds' ratios."""
    before, now = statistics.median(old.seconds[task]), statistics.median(new.seconds[task])
    ratios = sorted(a / b for a, b in zip(old.seconds[task], new.seconds[task], strict=True))
    cpu = statistics.median(old.cpu_seconds[task]) / statistics.median(new.cpu_seconds[task])
    return (
        f"| {task} | {before:.3f} | {now:.3f} | {before / now:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} | {cpu:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
