"""The study of a search: what is searched, Optuna's memory of it, and study.json, which reports read without Optuna.

A study is a folder: study.log (Optuna's journal), study.json, trial_N/ (the run folder of a trial) and trial_N.log
(the command that continues the trial, and what it printed).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.files import write_json

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TRIALS_BEFORE_PRUNING = 4  # that reach their end before one is compared with their median


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
    compose: Callable[[list[str]], RunConfig]  # the checked configuration of a command line; raises ConfigError
    seed: int = 0
    prune: bool = True  # stop trials whose validation loss is worse than the median of the others at the same step
    on_slurm: bool = False  # every trial is a job; those that begin together are a job array

    def folder_of(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / f"trial_{number}"

    def log_of(self, number: int) -> Path:
        """The log of a trial."""
        return self.folder / f"trial_{number}.log"


def open_study(search: Search) -> "optuna.Study":
    """The study in the search's folder, or a new one.

    Raises:
        ConfigError: Optuna is missing or too old, or the folder cannot be written or holds a study of something else.
    """
    try:
        import optuna
    except ImportError:
        optuna = None  # type: ignore[assignment]
    if optuna is None or int(optuna.__version__.partition(".")[0]) < 4:
        raise ConfigError("txl search needs Optuna 4 or newer: pip install 'transformer-xl[search]', or 'optuna>=4'")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(search.folder / "study.log")
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if search.prune:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING)
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
        study = optuna.create_study(
            storage=storage, study_name="study", pruner=pruner, direction="minimize", load_if_exists=True
        )
    except OSError as error:
        raise ConfigError(
            f"{search.folder} cannot hold the study: {error.strerror}; name another: --folder FOLDER"
        ) from None
    except (ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{journal} is damaged ({reason}); begin again elsewhere: --folder FOLDER") from None
    # A study that goes on draws other numbers than at its beginning.
    seed = search.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=search.parallel > 1)
    about = {"overrides": search.overrides, "space": [str(dimension) for dimension in search.space]}
    if study.user_attrs.get("about", about) != about:
        raise ConfigError(f"{search.folder} holds a study of other settings; name another folder: --folder FOLDER")
    study.set_user_attr("about", about)
    return study


def begun_trials(study: "optuna.Study") -> "list[FrozenTrial]":
    """The trials that an earlier start has begun and not ended."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def best_trial(study: "optuna.Study") -> "FrozenTrial | None":
    """The complete trial with the lowest loss, or None."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: trial.value if trial.value is not None else math.inf, default=None)


def write_study(study: "optuna.Study", search: Search) -> None:
    """Write study.json: what is searched, every trial, and how much each key decides. Losses are nats per token."""
    import optuna

    values = {
        "space": [dataclasses.asdict(dimension) for dimension in search.space],
        "overrides": search.overrides,
        "pruning": search.prune,
        "trials": [trial_record(trial, search) for trial in study.get_trials(deepcopy=False)],
        "importances": importances(study),
        "importances_by": f"PED-ANOVA of Optuna {optuna.__version__}",
    }
    write_json(search.folder / "study.json", values, indent=1)


def trial_record(trial: "FrozenTrial", search: Search) -> dict[str, Any]:
    """A trial as study.json has it: `loss` is the best validation of a complete one, `last_loss` the last of any."""
    last = max(trial.intermediate_values, default=None)
    return {
        "number": trial.number,
        "folder": search.folder_of(trial.number).name,
        "state": trial.state.name.lower(),  # running, complete, pruned, fail
        "values": trial.params,
        "loss": trial.value if trial.state.name == "COMPLETE" else None,
        "step": last,
        "last_loss": trial.intermediate_values[last] if last is not None else None,
    }


def importances(study: "optuna.Study") -> dict[str, float]:
    """The share of each key in what decides whether a trial is among the best; empty without two complete trials."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of being new, and of few trials, which the report says
        try:
            return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        except (ValueError, RuntimeError, ArithmeticError):
            return {}
