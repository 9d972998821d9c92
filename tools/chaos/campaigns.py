"""The campaigns: disturb a run, continue it, and compare it with one that was not disturbed."""

import errno
import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.configurations import composed
from tests.support.tiny_runs import metrics
from tools.chaos.cases import CASES, DRAWN, STEPS, arguments_of, write_data
from tools.chaos.compare import first_difference, record_of
from tools.chaos.operations import Operation, read_operations
from tools.chaos.power_cut import VARIANTS, disk_after
from tools.chaos.processes import ForkedRuns, Kill, Outcome
from tools.chaos.results import Results, Trial
from tools.chaos.shim import DELAY, FAIL_FROM, FAIL_ONCE, KILL, Fault
from txl.checkpoint.find import step_folders, step_of
from txl.config.schema import RunConfig
from txl.data.corpus import open_corpus
from txl.plan.batch_split import with_global_batch

MOST_MESSAGE = 300  # characters of an error message
STOP_CODES = {signal.SIGTERM: {143, 0, -15}, signal.SIGINT: {130, 0, -2}, signal.SIGUSR2: {140, 0, -12}}
FAULTS = {
    "disk full": Fault(FAIL_FROM, error=errno.ENOSPC),
    "input/output error": Fault(FAIL_ONCE, error=errno.EIO),
    "read-only file system": Fault(FAIL_FROM, error=errno.EROFS),
    "interrupted call": Fault(FAIL_ONCE, error=errno.EINTR),
    "slow file system": Fault(DELAY, error=1000),
}
KEPT = {  # what a disk holds after a power cut, in words
    "nothing": "only what was flushed is kept",
    "names": "names are kept, content that was not flushed is not",
    "random": "a random part of what was not flushed is kept",
    "torn": "a random part is kept, some of it as zeros",
}


@dataclass
class Reference:
    """A run of a case that was not disturbed."""

    record: dict[str, Any]
    seconds: float
    operations: list[Operation]

    @property
    def numbers(self) -> list[int]:
        """The operations at which to disturb a run: all, but of the copy of the code, 150 files, every tenth."""
        count = self.operations[-1].number + 1 if self.operations else 0
        code = {one.number for one in self.operations if "/code/" in one.path}
        return [number for number in range(count) if number not in code or number % 10 == 0]


@dataclass
class Workshop:
    """What all campaigns need: runs, data, results, and the undisturbed run of each case."""

    runs: ForkedRuns
    folder: Path
    results: Results
    seed: int = 0
    sample: int | None = None  # how many file operations are disturbed in each case; None: all
    data: dict[str, list[str]] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    _configs: dict[tuple[str, ...], RunConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = self.data or write_data(self.folder)

    @property
    def run_dir(self) -> Path:
        """The folder of the run that is disturbed."""
        return self.folder / "run"

    def arguments(self, case: str, *more: str) -> list[str]:
        """The command line of the disturbed run."""
        return [*arguments_of(case, self.data, self.run_dir), *more]

    def config(self, case: str, *more: str) -> RunConfig:
        """What Hydra makes of the command line."""
        arguments = tuple(self.arguments(case, *more))
        if arguments not in self._configs:
            self._configs[arguments] = with_global_batch(composed(*arguments))
        return self._configs[arguments]

    def run(self, case: str, start: list[str] | RunConfig, fault: Fault | None = None, **how: Any) -> Outcome:
        """Run a case in `run_dir`: `ForkedRuns.run`."""
        self.runs.draws = case in DRAWN
        return self.runs.run(start, self.run_dir, fault, **how)

    def reference(self, case: str) -> Reference:
        """The undisturbed run of a case; it is run once, with the data encoded before."""
        if case not in self.references:
            open_corpus(self.config(case).data)  # encodes the data, unless another case did
            shutil.rmtree(self.run_dir, ignore_errors=True)
            log = self.folder / "operations.log"
            outcome = self.run(case, self.config(case), log=log)
            if outcome.code != 0:
                raise RuntimeError(f"the undisturbed run of {case} fails:\n{outcome.output[-3000:]}")
            self.references[case] = Reference(self.record(case), outcome.seconds, read_operations(log))
        return self.references[case]

    def record(self, case: str) -> dict[str, Any]:
        """What the run in `run_dir` computed."""
        columns = next(int(o.partition("=")[2]) for o in reversed(self.arguments(case)) if "train.batch_size" in o)
        return record_of(self.run_dir, columns)

    def continue_and_compare(self, case: str, reached: int, saved: int) -> tuple[str | None, int]:
        """Continue the disturbed run to its end.

        Args:
            case: The kind of run.
            reached: The last step that it had done.
            saved: The step of its last checkpoint, from which it must go on.

        Returns:
            What is wrong, or None; and the number of steps that were computed again.
        """
        outcome = self.run(case, self.config(case, "resume=auto"))
        if outcome.code != 0:
            return f"the next start ends with code {outcome.code}: {outcome.output[-600:]}", 0
        if "is finished: nothing to do" in outcome.output:
            began = reached = STEPS
        else:
            folder = outcome.output.partition("going on from ")[2].partition("\n")[0]
            began = step_of(Path(folder)) if folder else 0
        lost = max(0, reached - began)
        if began < saved:
            return f"the run goes on from step {began}, although step {saved} had been saved", lost
        try:
            return first_difference(self.reference(case).record, self.record(case)), lost
        except Exception as error:
            return f"{type(error).__name__}: {error}", lost

    def progress(self) -> tuple[int, int]:
        """The last step in the disturbed run's metrics, and the step of its last checkpoint."""
        saved = step_folders(self.run_dir / "checkpoints")
        return newest_step_in_metrics(self.run_dir), step_of(saved[0]) if saved else 0


def newest_step_in_metrics(run_dir: Path) -> int:
    """The last step that metrics.jsonl shows; the last line may be incomplete."""
    try:
        return max((int(record["step"]) for record in metrics(run_dir)), default=0)
    except (OSError, ValueError):
        return 0


# --------------------------------------------------------------------------- kills at random instants


def kills(workshop: Workshop, trials: int, cases: list[str]) -> Iterator[Trial]:
    """Kill a run at a random instant, perhaps several times, and continue it."""
    for number in range(trials):
        case = cases[number % len(cases)]
        if workshop.results.has("kills", case, str(number)):
            continue
        rng = random.Random(f"{workshop.seed}-{number}")
        reference = workshop.reference(case)
        shutil.rmtree(workshop.run_dir, ignore_errors=True)
        if rng.random() < 0.2:  # encoding the data is a part of some lives
            shutil.rmtree(workshop.folder / "text" / "cache", ignore_errors=True)
        problem, killed, noticed, hit = None, [], 0.0, False
        for attempt in range(rng.choice([1, 1, 2, 3])):
            kill = _random_kill(rng, case, reference.seconds)
            more = ["resume=auto"] if attempt else []
            # After Ctrl-C and SIGTERM, what the command line's own code does with them counts as well.
            start = workshop.config if kill.number == signal.SIGKILL else workshop.arguments
            outcome = workshop.run(case, start(case, *more), kill=kill)
            killed.append(f"{signal.Signals(kill.number).name} to the {kill.whom} after {kill.after:.2f} s")
            noticed = max(noticed, outcome.seconds - kill.after)
            hit = hit or outcome.code != 0
            problem = problem or judge_kill(outcome, kill)
        after, lost = workshop.continue_and_compare(case, *workshop.progress())
        fault = f"{killed[-1].partition(' after')[0]} at a random instant"
        problem = f"{problem or after} ({'; '.join(killed)})" if problem or after else None
        yield Trial("kills", case, str(number), fault, problem, lost, round(noticed, 2), hit)


def _random_kill(rng: random.Random, case: str, seconds: float) -> Kill:
    number = rng.choice([signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT])
    ranks = ["rank 0", "rank 1", "launcher"] if "gpus=2" in CASES[case] else []
    whom = rng.choice(["launcher", *ranks]) if number == signal.SIGKILL else "launcher"
    return Kill(rng.uniform(0, 1.05 * seconds), number, whom)


def judge_kill(outcome: Outcome, kill: Kill) -> str | None:
    """What is wrong with the end of a run that got a signal."""
    if outcome.orphans:
        return f"{outcome.orphans} processes outlive their launcher"
    if kill.number == signal.SIGKILL:
        return None
    if outcome.code not in STOP_CODES[signal.Signals(kill.number)]:
        return f"exit code {outcome.code} after {signal.Signals(kill.number).name}: {outcome.output[-500:]}"
    return "a traceback: " + outcome.output[-500:] if "Traceback" in outcome.output else None


# --------------------------------------------------------------------------- one file operation


def kills_at_operations(workshop: Workshop, cases: list[str]) -> Iterator[Trial]:
    """Kill a run before its n-th file operation, for every n of the sample, and continue it."""
    for case in cases:
        for number in _operations(workshop, case):
            if workshop.results.has("kills_at_operations", case, str(number)):
                continue
            shutil.rmtree(workshop.run_dir, ignore_errors=True)
            outcome = workshop.run(case, workshop.config(case), Fault(KILL, number))
            problem = f"{outcome.orphans} processes outlive their launcher" if outcome.orphans else None
            after, lost = workshop.continue_and_compare(case, *workshop.progress())
            disturbed = outcome.code != 0
            fault = "SIGKILL before a file operation"
            yield Trial("kills_at_operations", case, str(number), fault, problem or after, lost, 0.0, disturbed)


def faults(workshop: Workshop, cases: list[str]) -> Iterator[Trial]:
    """Let the n-th file operation fail in every way, for every n of the sample, and continue the run."""
    for case in cases:
        for number in _operations(workshop, case):
            for fault, how in FAULTS.items():
                name = f"{number} {fault}"
                if workshop.results.has("faults", case, name):
                    continue
                shutil.rmtree(workshop.run_dir, ignore_errors=True)
                injected = Fault(how.action, number, how.error)
                outcome = workshop.run(case, workshop.config(case), injected)
                after, lost = workshop.continue_and_compare(case, *workshop.progress())
                problem = judge_fault(outcome, fault) or after
                yield Trial("faults", case, name, fault, problem, lost, 0.0, outcome.code != 0)


def judge_fault(outcome: Outcome, fault: str) -> str | None:
    """What is wrong with the end of a run one of whose file operations failed."""
    harmless = fault in ("interrupted call", "slow file system")
    if "Traceback" in outcome.output:
        return "a traceback: " + outcome.output[-800:]
    if outcome.code < 0 or outcome.orphans:
        return f"exit code {outcome.code}, {outcome.orphans} processes outlive their launcher"
    if harmless and outcome.code != 0:
        return f"exit code {outcome.code}: {outcome.output[-500:]}"
    errors = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    if outcome.code and not errors:
        return f"exit code {outcome.code} without an error: {outcome.output[-500:]}"
    return next((f"a long message: {line}" for line in errors if len(line) > MOST_MESSAGE), None)


def _operations(workshop: Workshop, case: str) -> list[int]:
    numbers = workshop.reference(case).numbers
    if workshop.sample is None:
        return numbers
    return sorted(random.Random(workshop.seed).sample(numbers, min(workshop.sample, len(numbers))))


def power_cuts(workshop: Workshop, cases: list[str]) -> Iterator[Trial]:
    """Cut the power before the n-th file operation, for every n of the sample, and continue the run.

    The disk's content after the cut is computed from the record of an undisturbed run.
    """
    for case in cases:
        operations = workshop.reference(case).operations
        for number in _operations(workshop, case):
            for variant in VARIANTS:
                name = f"{number} {variant}"
                if workshop.results.has("power_cuts", case, name):
                    continue
                disk = disk_after(operations, workshop.run_dir, number)
                shutil.rmtree(workshop.run_dir, ignore_errors=True)
                disk.write_after_cut(variant, random.Random(f"{workshop.seed}-{name}"))
                problem, lost = workshop.continue_and_compare(case, *progress_before(operations, number))
                yield Trial("power_cuts", case, name, f"power cut, {KEPT[variant]}", problem, lost)


def progress_before(operations: list[Operation], number: int) -> tuple[int, int]:
    """The last step, and the last step whose checkpoint was flushed, before an operation of an undisturbed run."""
    reached = saved = renamed = 0
    for operation in operations:
        if operation.number >= number:
            break
        if operation.name == "write" and operation.path.endswith("/metrics.jsonl"):
            reached = max(reached, int(json.loads(operation.data)["step"]))
        elif operation.name == "rename" and re.fullmatch(r".*/checkpoints/step_\d+", operation.target):
            renamed = step_of(Path(operation.target))
        elif operation.name == "fsync" and operation.path.endswith("/checkpoints"):
            saved = renamed
    return reached, saved
