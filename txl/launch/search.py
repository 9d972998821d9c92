"""A search for good settings: Optuna proposes, every trial is a training of its own, bad ones are stopped early.

The same search in the same folder goes on where it stopped, and so do the trials that it was running.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.files import open_for_reading, parse_json, read_json, write_json
from txl.launch.study import Search, begun_trials, best_trial, open_study, write_study
from txl.launch.trial_training import (
    POLL_SECONDS,
    SAVING_SECONDS,
    LocalTraining,
    TrialTraining,
    note_command,
    submit_trainings,
    train_command,
)
from txl.report.run_state import PRUNED_MARK
from txl.system.process_exit import BAD_CONFIGURATION, DIVERGED, INTERRUPTED
from txl.system.run_lock import held_lock, is_locked, lock_owner

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

WHY_PRUNED = "its validation was worse than the median of the trials at that step"


@dataclass
class RunningTrial:
    """A trial whose training is running."""

    trial: "optuna.Trial"
    values: list[str]  # what Optuna proposed, as overrides
    run_dir: Path
    slot: int  # which of the parallel places it has
    reported: set[int] = field(default_factory=set)  # steps of validations that Optuna knows
    pruned: bool = False
    training: TrialTraining | None = None  # None: about to be started


def run_search(search: Search) -> int:
    """Run trials until there are enough; returns the exit code: 0 if at least one reached its end.

    Raises:
        ConfigError: The trials' configuration is wrong, or the folder holds a study of something else, or another
            search works in it.
    """
    study = open_study(search)
    if is_locked(search.folder):
        owner = lock_owner(search.folder)
        raise ConfigError(f"{search.folder} is in use by {owner}; wait for it, or name another: --folder FOLDER")
    with held_lock(search.folder):
        return run_trials(study, search)


def run_trials(study: "optuna.Study", search: Search) -> int:
    """What `run_search` does, once the study is open and its folder locked."""
    running: list[RunningTrial] = []
    waiting = [trial for trial in begun_trials(study) if not tell_if_pruned(study, search, trial)]
    with terminated_as_interrupt():
        try:
            while True:
                fresh = []
                while len(running) < search.parallel and (waiting or len(study.trials) < search.trials):
                    running.append(next_trial(study, search, waiting.pop(0) if waiting else None, running))
                    fresh.append(running[-1])
                start_trials(study, search, fresh)
                write_study(study, search)
                if not running:
                    break
                follow_until_one_ends(study, search, running)
        except KeyboardInterrupt:
            stop_trials(running)
            print("interrupted: the same command continues the study and its trials", flush=True)
            return INTERRUPTED
        except BaseException:
            stop_trials(running)
            raise
        finally:
            write_study(study, search)
    return 0 if best_trial(study) is not None else 1


def tell_if_pruned(study: "optuna.Study", search: Search, begun: "FrozenTrial") -> bool:
    """Whether an earlier start stopped a trial that it has begun; Optuna is told then."""
    from optuna.trial import TrialState

    run_dir = search.folder_of(begun.number)
    if not (run_dir / PRUNED_MARK).exists() or (run_dir / "summary.json").exists():
        return False
    study.tell(begun.number, state=TrialState.PRUNED)
    return True


def next_trial(
    study: "optuna.Study", search: Search, begun: "FrozenTrial | None", running: list[RunningTrial]
) -> RunningTrial:
    """A new trial, or one that an earlier start began.

    Args:
        study: The study.
        search: What is searched.
        begun: The trial to go on with; None: ask Optuna for a new one.
        running: The trials that are running.
    """
    from optuna.trial import Trial

    trial = study.ask() if begun is None else Trial(study, begun._trial_id)
    values = [f"{dimension.key}={dimension.suggest(trial)}" for dimension in search.space]
    slot = min(set(range(search.parallel)) - {one.slot for one in running})
    reported = set(begun.intermediate_values) if begun else set[int]()
    return RunningTrial(trial, values, search.folder_of(trial.number), slot, reported)


def start_trials(study: "optuna.Study", search: Search, fresh: list[RunningTrial]) -> None:
    """Start the trainings of trials, here or as jobs. Raises ConfigError if one is refused."""
    for one in fresh:
        note_command(search, one.trial.number, one.values)
        print(f"trial {one.trial.number} begins: {' '.join(one.values)}", flush=True)
        if not search.on_slurm:
            one.training = LocalTraining(search, one.trial.number, one.values, one.slot)
    if fresh and search.on_slurm:
        trainings = submit_trainings(search, {one.trial.number: compose_trial(study, search, one) for one in fresh})
        for one, training in zip(fresh, trainings, strict=True):
            one.training = training


def compose_trial(study: "optuna.Study", search: Search, one: RunningTrial) -> RunConfig:
    """The configuration of a trial. Raises ConfigError if its values do not fit together; the trial has failed then."""
    from optuna.trial import TrialState

    try:
        return search.compose(train_command(search, one.trial.number, one.values))
    except ConfigError as error:
        study.tell(one.trial, state=TrialState.FAIL)
        raise ConfigError(f"trial {one.trial.number}: {error}") from None


def follow_until_one_ends(study: "optuna.Study", search: Search, running: list[RunningTrial]) -> None:
    """Tell Optuna what happens, until the training of a trial has ended, which leaves the list."""
    before = len(running)
    while len(running) == before:
        # SLURM's controller serves others, too.
        time.sleep(max(1.0, len(running) / 8) if search.on_slurm else POLL_SECONDS)
        for one in list(running):
            if follow_trial(study, search, one):
                running.remove(one)


def follow_trial(study: "optuna.Study", search: Search, one: RunningTrial) -> bool:
    """Tell Optuna the validations of a trial, stop it if it is hopeless; returns whether it has ended.

    Raises:
        ConfigError: The training was refused.
    """
    assert one.training is not None
    code = one.training.poll()
    for step, loss in validations(one.run_dir):
        if step not in one.reported:
            one.reported.add(step)
            one.trial.report(loss, step)
            if not one.pruned and code is None and one.trial.should_prune():
                one.pruned = True
                write_json(one.run_dir / PRUNED_MARK, {"step": step, "loss": loss, "why": WHY_PRUNED})
                one.training.stop()
    if code is None:
        return False
    tell_end(study, search, one, code)
    return True


def tell_end(study: "optuna.Study", search: Search, one: RunningTrial, code: int) -> None:
    """Tell Optuna what became of a trial, and print it.

    Args:
        study: The study.
        search: What is searched.
        one: The trial, whose training has ended.
        code: The exit code of the training.

    Raises:
        ConfigError: The training was refused.
    """
    from optuna.trial import TrialState

    assert one.training is not None
    number = one.trial.number
    summary = read_json(one.run_dir / "summary.json") or {}
    loss = summary.get("best_valid_loss")
    if code == BAD_CONFIGURATION:
        study.tell(one.trial, state=TrialState.FAIL)
        raise ConfigError(f"trial {number}: {one.training.last_words()}")
    if one.pruned and not summary:
        study.tell(one.trial, state=TrialState.PRUNED)
        print(f"trial {number} pruned at step {max(one.reported)}: {WHY_PRUNED}", flush=True)
    elif isinstance(loss, int | float) and math.isfinite(loss):
        (one.run_dir / PRUNED_MARK).unlink(missing_ok=True)  # it reached its end before it was stopped
        study.tell(one.trial, float(loss))
        print(f"trial {number} ended: valid loss {loss:.4f} (best {study.best_value:.4f})", flush=True)
    else:
        study.tell(one.trial, state=TrialState.FAIL)
        why = "diverged" if code == DIVERGED else f"exit code {code}"
        print(f"trial {number} failed ({why}: {one.training.last_words()}); see {search.log_of(number)}", flush=True)


def validations(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of the validations of a run so far, whose loss is finite."""
    found = []
    try:
        with open_for_reading(run_dir / "metrics.jsonl") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        if b'"valid"' in line:
            try:
                record: dict[str, Any] = parse_json(line)
            except ValueError:
                continue
            if record.get("kind") == "valid" and isinstance(record.get("loss"), int | float):
                found.append((int(record["step"]), float(record["loss"])))
    return found


def stop_trials(running: list[RunningTrial]) -> None:
    """Ask trials to save and stop; return when they have, or after SAVING_SECONDS."""
    started = [one.training for one in running if one.training is not None]
    for training in started:
        training.stop()
    deadline = time.monotonic() + SAVING_SECONDS
    while any(training.poll() is None for training in started) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
