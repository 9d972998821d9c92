"""A search for good settings: Optuna proposes, every trial is a training of its own, bad ones are stopped early.

The study is a folder: study.log (Optuna's journal), trial_N/ (the run folder of a trial) and trial_N.log (what it
printed). The same search in the same folder goes on where it stopped, and so do the trials that it was running.
"""

import contextlib
import ctypes
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from txl.errors import ConfigError
from txl.files import PROJECT, open_for_reading, parse_json, read_json
from txl.launch.cancel import cancel_run
from txl.system.hardware import visible_gpus
from txl.system.process_exit import BAD_CONFIGURATION, DIVERGED, INTERRUPTED
from txl.system.run_lock import is_locked

if TYPE_CHECKING:
    import optuna

POLL_SECONDS = 0.5
SAVING_SECONDS = 120.0  # that a trial of a killed search may take to save


@dataclass(frozen=True)
class Dimension:
    """One key that is searched: a range of numbers, or choices."""

    key: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False  # numbers are drawn by their logarithm
    whole: bool = False  # whole numbers
    choices: tuple[str, ...] = ()  # as they are written on the command line; empty: a range

    def suggest(self, trial: "optuna.Trial") -> str:
        """The value that Optuna proposes, as it is written on the command line."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, self.choices))
        if self.whole:
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1)))
        return repr(trial.suggest_float(self.key, self.low, self.high, log=self.log))


@dataclass(frozen=True)
class Search:
    """What is searched, and how."""

    folder: Path  # of the study
    overrides: list[str]  # of every trial
    space: list[Dimension]
    trials: int  # at most, those of earlier starts included
    parallel: int  # trials at once
    seed: int = 0
    prune: bool = True  # stop trials whose validation loss is worse than the median of the others at the same step
    on_slurm: bool = False  # every trial submits a job and waits for it


@dataclass
class RunningTrial:
    """A trial whose training is running."""

    trial: "optuna.Trial"
    run_dir: Path
    process: "subprocess.Popen[bytes]"
    slot: int  # which of the parallel places it has
    reported: set[int] = field(default_factory=set)  # steps of validations that Optuna knows
    pruned: bool = False


def run_search(search: Search) -> int:
    """Run trials until there are enough; returns the exit code: 0 if at least one reached its end.

    Raises:
        ConfigError: The trials' configuration is wrong, or the folder holds a study of something else.
    """
    study = open_study(search)
    running: list[RunningTrial] = []
    waiting = begun_trials(study)
    with terminated_as_interrupt():
        try:
            while True:
                while len(running) < search.parallel and (waiting or len(study.trials) < search.trials):
                    running.append(start_trial(study, search, waiting.pop(0) if waiting else None, running))
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                for one in list(running):
                    if follow_trial(study, search, one):
                        running.remove(one)
        except KeyboardInterrupt:
            stop_trials(running, search)
            print("interrupted: the same command continues the study and its trials", flush=True)
            return INTERRUPTED
        except BaseException:
            stop_trials(running, search)
            raise
    return 0 if best_trial(study) is not None else 1


def open_study(search: Search) -> "optuna.Study":
    """The study in the search's folder, or a new one. Raises ConfigError if Optuna is missing or too old."""
    try:
        import optuna
    except ImportError:
        optuna = None  # type: ignore[assignment]
    if optuna is None or int(optuna.__version__.partition(".")[0]) < 4:
        raise ConfigError("txl search needs Optuna 4 or newer: pip install 'transformer-xl[search]', or 'optuna>=4'")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.folder.mkdir(parents=True, exist_ok=True)
    journal = str(search.folder / "study.log")
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if search.prune:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(
        storage=storage, study_name="study", pruner=pruner, direction="minimize", load_if_exists=True
    )
    # A study that goes on draws other numbers than at its beginning.
    seed = search.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=search.parallel > 1)
    about = {"overrides": search.overrides, "space": [str(dimension) for dimension in search.space]}
    if study.user_attrs.get("about", about) != about:
        raise ConfigError(f"{search.folder} holds a study of other settings; name another folder: --folder FOLDER")
    study.set_user_attr("about", about)
    return study


def begun_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that an earlier start has begun and not ended."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def start_trial(
    study: "optuna.Study", search: Search, begun: "optuna.trial.FrozenTrial | None", running: list[RunningTrial]
) -> RunningTrial:
    """Start the training of a new trial, or go on with that of a trial which an earlier start began.

    Args:
        study: The study.
        search: What is searched.
        begun: The trial to go on with; None: ask Optuna for a new one.
        running: The trials that are running.
    """
    from optuna.trial import Trial

    trial = study.ask() if begun is None else Trial(study, begun._trial_id)
    values = [f"{dimension.key}={dimension.suggest(trial)}" for dimension in search.space]
    run_dir = search.folder / f"trial_{trial.number}"
    command = [sys.executable, "-m", "txl", "train", *search.overrides, *values, f"run_dir={run_dir}", "resume=auto"]
    command += ["cluster.wait=true"] if search.on_slurm else []
    slot = min(set(range(search.parallel)) - {one.slot for one in running})
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    gpus = [] if search.on_slurm else visible_gpus()
    if gpus and search.parallel > 1:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices()[slot % len(gpus)]
    wait_until_free(run_dir)
    print(f"trial {trial.number} begins: {' '.join(values)}", flush=True)
    with open(search.folder / f"trial_{trial.number}.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=functools.partial(save_if_the_search_dies, os.getpid()),
        )
    return RunningTrial(trial, run_dir, process, slot, set(begun.intermediate_values) if begun else set())


def save_if_the_search_dies(search: int) -> None:
    """In a trial's process, before it starts: ask for SIGTERM when the search is gone, however it ended.

    `search`: the search's process. If it ended before this call, the trial does not start.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != search:
        os._exit(1)


def wait_until_free(run_dir: Path) -> None:
    """Wait for a trial of a killed search, which is still saving."""
    deadline = time.monotonic() + SAVING_SECONDS
    while is_locked(run_dir) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def visible_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold, one entry per GPU that this process sees."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(len(visible_gpus()))]


def follow_trial(study: "optuna.Study", search: Search, one: RunningTrial) -> bool:
    """Tell Optuna the validations of a trial, stop it if it is hopeless; returns whether it has ended.

    Raises:
        ConfigError: The training was refused.
    """
    ended = one.process.poll() is not None
    for step, loss in validations(one.run_dir):
        if step not in one.reported:
            one.reported.add(step)
            one.trial.report(loss, step)
            if not one.pruned and not ended and one.trial.should_prune():
                one.pruned = True
                stop_trials([one], search, wait=False)
    if not ended:
        return False
    tell_end(study, search, one)
    return True


def tell_end(study: "optuna.Study", search: Search, one: RunningTrial) -> None:
    """Tell Optuna what became of a trial, and print it. Raises ConfigError if the training was refused."""
    from optuna.trial import TrialState

    number, code = one.trial.number, one.process.returncode
    summary = read_json(one.run_dir / "summary.json") or {}
    loss = summary.get("best_valid_loss")
    if code == BAD_CONFIGURATION:
        study.tell(one.trial, state=TrialState.FAIL)
        raise ConfigError(f"trial {number}: {last_line(search.folder / f'trial_{number}.log')}")
    if one.pruned and not summary:
        study.tell(one.trial, state=TrialState.PRUNED)
        print(f"trial {number} stopped at step {max(one.reported)}: worse than the median", flush=True)
    elif isinstance(loss, int | float) and math.isfinite(loss):
        study.tell(one.trial, float(loss))
        print(f"trial {number} ended: valid loss {loss:.4f} (best {study.best_value:.4f})", flush=True)
    else:
        study.tell(one.trial, state=TrialState.FAIL)
        why = "diverged" if code == DIVERGED else f"exit code {code}"
        print(f"trial {number} failed ({why}); see {search.folder / f'trial_{number}.log'}", flush=True)


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


def best_trial(study: "optuna.Study") -> "optuna.trial.FrozenTrial | None":
    """The complete trial with the lowest loss, or None."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: trial.value if trial.value is not None else math.inf, default=None)


def stop_trials(running: list[RunningTrial], search: Search, wait: bool = True) -> None:
    """Ask trials to save and stop; with `wait`, return when they have."""
    for one in running:
        if search.on_slurm:
            cancel_run(one.run_dir)
        elif one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
    for one in running if wait else []:
        if search.on_slurm:  # the job is cancelled; what waits for it has nothing to save
            one.process.terminate()
        one.process.wait()


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


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it printed nothing"
