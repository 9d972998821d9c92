"""Does this tree compute what another revision computed, bit by bit?

    make same-as REV=v0.1.0 DATA=folder     # with wikitext-mini/ in it; without DATA that case is skipped

The revision is checked out beside this tree. Each case trains on both with the same Python; every loss of
metrics.jsonl and every final weight must be equal. Then this tree goes on from the revision's checkpoint of half the
steps, and evaluates the revision's last checkpoint: both must give the revision's numbers. Exits with 1 otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # this is run as a script

from tests.support.made_data import write_corpus  # noqa: E402
from tests.support.revisions import checked_out, short_commit  # noqa: E402
from tests.support.tiny_runs import TINY_RUN  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One training, described by the options of train.py."""

    name: str
    steps: int
    overrides: list[str]


@dataclass(frozen=True)
class Tree:
    """A checkout, and the folder of what it computes."""

    project: Path
    runs: Path

    def start(self, script: str, *overrides: str) -> subprocess.Popen[str]:
        """Start an entry point on one thread, so that both trees fit on two cores."""
        self.runs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.project)}
        environment |= {"TXL_CACHE": str(self.runs / "cache")}
        command = [sys.executable, str(self.project / script), "hardware=cpu", *overrides]
        return subprocess.Popen(
            command, cwd=self.runs, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def train(self, case: Case, *overrides: str, folder: str = "") -> subprocess.Popen[str]:
        """Train a case into the run folder of its name."""
        lengths = [f"train.max_step={case.steps}", f"checkpoint.interval={case.steps // 2}", "checkpoint.save_all=true"]
        run_dir = self.runs / (folder or case.name)
        given = [*case.overrides, *lengths, "train.log_interval=1", f"valid.interval={case.steps // 2}"]
        return self.start("train.py", *given, f"run_dir={run_dir}", *overrides)


def finish(*started: subprocess.Popen[str]) -> None:
    """Wait for processes; one that fails ends everything with its output. None of them outlives this call."""
    try:
        for process in started:
            output, _ = process.communicate()
            if process.returncode:
                sys.exit(f"error: {process.args!r}\n{output}")
    finally:
        running = [process for process in started if process.poll() is None]
        for process in running:  # their folder is removed next
            process.terminate()
        for process in running:
            process.communicate()


def losses(run_dir: Path, after: int = 0) -> list[tuple[str, int, float]]:
    """(kind, step, loss) of every record of metrics.jsonl, after a step."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(one["kind"], one["step"], one["loss"]) for one in records if "loss" in one and one["step"] > after]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The model in a run's last checkpoint."""
    loaded: dict[str, torch.Tensor] = torch.load(
        run_dir / "checkpoints" / "last" / "model.pt", "cpu", weights_only=True
    )
    assert loaded and all(isinstance(value, torch.Tensor) for value in loaded.values())
    return loaded


def same_weights(one: Path, two: Path) -> bool:
    """Are the last weights of two runs equal, every bit of them?"""
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def evaluated(result: Path) -> dict[str, tuple[float, int]]:
    """Loss and number of tokens of each split in a result of evaluate.py."""
    splits = json.loads(result.read_text())
    return {
        split: (one["loss"], one["tokens"]) for split, one in splits.items() if isinstance(one, dict) and "loss" in one
    }


def compare(case: Case, old: Tree, new: Tree) -> tuple[dict[str, bool], int]:
    """Train on both trees, resume and evaluate the old one's checkpoints; what is equal, and how many losses were."""
    finish(old.train(case), new.train(case))
    before, after, resumed = old.runs / case.name, new.runs / case.name, new.runs / f"{case.name}-resumed"
    middle = before / "checkpoints" / f"step_{case.steps // 2}"
    results = [tree.runs / f"{case.name}.json" for tree in (old, new)]
    evaluation = [f"checkpoint={before}/checkpoints/last", "max_steps=20"]
    finish(
        new.train(case, f"resume={middle}", folder=resumed.name),
        old.start("evaluate.py", *evaluation, f"json={results[0]}"),
        new.start("evaluate.py", *evaluation, f"json={results[1]}"),
    )
    equal = {
        "losses": losses(before) == losses(after),
        "weights": same_weights(before, after),
        "resumed": losses(before, case.steps // 2) == losses(resumed) and same_weights(before, resumed),
        "evaluated": evaluated(results[0]) == evaluated(results[1]),
    }
    return equal, len(losses(before))


def cases(folder: Path, data: Path | None) -> list[Case]:
    """What is trained. The texts of the small ones are written to `folder`."""
    text = [override for override in write_corpus(folder, 2000) if not override.startswith("data.cache=")]
    small = [*TINY_RUN, *text, "train.roll=true"]
    sampled = ["data.vocab=word", "model.adaptive=false", "optimizer=adam", "train.sampled_softmax=6"]
    found = [
        Case(
            "demo",
            200,
            ["experiment=demo", "resume=null", "sample_tokens=0", "valid.max_steps=20", "optimizer.lr=0.001"],
        ),
        Case("two-processes", 60, [*small, "gpus=2"]),
        Case(
            "accumulation-varlen-sampled-softmax",
            60,
            [*small, *sampled, "train.varlen=true", "train.micro_batch_size=2"],
        ),
    ]
    if data is not None:
        found.insert(1, Case("wikitext-mini", 60, ["experiment=wikitext-mini", f"data.path={data}/wikitext-mini"]))
    return found


def main() -> int:
    """Compare this tree with a revision; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="a revision that git knows")
    parser.add_argument("--data", type=Path, help="folder that holds wikitext-mini/")
    given = parser.parse_args()
    data = given.data.resolve() if given.data else None
    if data is not None and not (data / "wikitext-mini" / "train.txt").is_file():
        parser.error(f"--data {given.data}: there is no wikitext-mini/train.txt in it")
    commit = short_commit(given.rev)
    if commit is None:
        parser.error(f"{given.rev}: git knows no such revision")
    with (
        tempfile.TemporaryDirectory(prefix="same-as-") as folder,
        checked_out(given.rev, Path(folder) / "checkout") as checkout,
    ):
        return report(commit, Path(folder), checkout, data)


def report(commit: str, folder: Path, checkout: Path, data: Path | None) -> int:
    """Print the table; returns the exit code."""
    old, new = Tree(checkout, folder / "old"), Tree(PROJECT, folder / "new")
    print(f"this tree beside {commit}, torch {torch.__version__}", flush=True)
    print("| case | steps | losses | losses equal | weights equal | resumed equal | evaluated equal | seconds |")
    print("|---|" + "---:|" * 7, flush=True)
    held = True
    for case in cases(folder / "text", data):
        begun = time.monotonic()
        equal, count = compare(case, old, new)
        held &= all(equal.values())
        said = " | ".join("yes" if one else "**NO**" for one in equal.values())
        print(f"| {case.name} | {case.steps} | {count} | {said} | {time.monotonic() - begun:.0f} |", flush=True)
    if data is None:
        print("wikitext-mini was skipped: name the folder that holds it (DATA=FOLDER)")
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
