"""Composes a configuration with Hydra, converts and checks it, and starts it. A mistake is one line and exit code 2."""

import contextlib
import math
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from txl.cli.arguments import config_dir_of, split_arguments
from txl.cli.sweeps import point_heading, point_label, swept_keys, with_own_folder, with_wandb_names
from txl.cli.user_conf import search_user_conf
from txl.config.compose import TYPED_TEXT, Config, register_types, to_typed
from txl.config.error_messages import composition_error
from txl.config.rules import validate
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, Suite
from txl.errors import ConfigError, disk_fault, error_line
from txl.files import CONF, PROJECT
from txl.plan.batch_split import with_global_batch
from txl.system.console import discard_stdout
from txl.system.process_exit import (
    BAD_CONFIGURATION,
    BROKEN_PIPE,
    INTERRUPTED,
    MISSED_TARGET,
    TERMINATED,
    leave,
    raise_on_stop_signals,
)

if TYPE_CHECKING:
    from txl.launch.start import Launcher

STOPPED = {INTERRUPTED, TERMINATED}  # after these exit codes no further point of a sweep is tried

TYPED_LISTS = {"stop", "stop_tokens"}  # keys that take one such text, or a list of them: [a,b]

KINDS: dict[str, type[RunConfig | EvaluateConfig]] = {
    "train": RunConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
}


def run_with_hydra(name: str, arguments: list[str]) -> int:
    """Composes `conf/<name>.yaml` with the command line, checks and starts the result, and waits for submitted jobs.

    With `-m`, all points are started one after the other, also after one has failed, unless the user interrupts.

    Args:
        name: train, evaluate or benchmark.
        arguments: The command line: key=value, and Hydra's flags.

    Returns:
        The exit code; with `-m` the worst one of all points.
    """
    kind = KINDS[name]
    try:
        overrides, flags = split_arguments(arguments, name, kind)
        many = bool({"-m", "--multirun"} & set(flags))
        points = _Points(name, overrides, many)
    except ConfigError as error:
        return print_error(str(error))
    sys.argv[1:] = [*map(as_typed_list if many else quote_typed_text, overrides), *flags]  # Hydra reads it
    import hydra

    _set_environment()
    register_types()
    search_user_conf(config_dir_of(flags))

    def start(cfg: DictConfig) -> float | None:
        return points.start(cfg)

    try:
        try:
            with _sweep_folder(kind, overrides, many):
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(start)()
        except Exception as error:  # `exit_code_of` handles those of the points
            return print_error(composition_error(error, kind, overrides))
        points.wait()
    except BrokenPipeError:
        discard_stdout()
    except KeyboardInterrupt:
        if not STOPPED & set(points.codes):
            points.codes.append(print_error("interrupted", INTERRUPTED))
    if "RANK" in os.environ:
        leave(max(points.codes, default=0))
    return max(points.codes, default=0)


class _Points:
    """The points of a sweep, or the only one: started one after the other, as Hydra composes them."""

    def __init__(self, name: str, overrides: list[str], is_sweep: bool) -> None:
        """`overrides`: the command line. Raises ConfigError if all points of the sweep would have one folder."""
        self.name, self.kind, self.overrides, self.is_sweep = name, KINDS[name], overrides, is_sweep
        self.swept = swept_keys(overrides) if is_sweep else set()
        self.started = 0  # points of the sweep
        self.codes: list[int] = []  # exit codes
        self.launcher: Launcher | None = None  # imported when the first point is composed: a mistake is answered before

    def start(self, cfg: DictConfig) -> float | None:
        """Checks and starts a point. Raises KeyboardInterrupt if it was stopped: the others are not started then.

        Returns:
            The lowest validation loss of a training that ran here, for Hydra's sweepers; infinity if it failed.
        """
        from hydra.core.hydra_config import HydraConfig

        from txl.launch.start import Launcher

        register_types()  # jobs of hydra/launcher=submitit_slurm start here
        raise_on_stop_signals()
        launcher = self.launcher = self.launcher or Launcher()
        typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # `a=${b}` as it was typed
        overrides = [str(one) for one in typed] if isinstance(typed, list) else []
        if self.is_sweep:
            self.started += 1
            print(f"\n{point_heading(self.started, overrides, self.swept)}", flush=True)
        self.codes.append(exit_code_of(lambda: self._start_point(launcher, self._checked(cfg, overrides), overrides)))
        if self.codes[-1] in STOPPED:
            raise KeyboardInterrupt
        ended = self.codes[-1] in (0, MISSED_TARGET)
        return launcher.best_valid_loss() if ended else math.inf

    def _checked(self, cfg: DictConfig, overrides: list[str]) -> RunConfig | EvaluateConfig:
        if not self.swept:
            return checked_config(cfg, self.kind)
        config = checked_config(cfg, self.kind, point_label(overrides, self.swept))
        if isinstance(config, RunConfig):
            return with_wandb_names(config, overrides, self.swept, self.overrides)
        return config

    def _start_point(self, launcher: "Launcher", config: RunConfig | EvaluateConfig, overrides: list[str]) -> int:
        is_measurement = isinstance(config, BenchmarkConfig) and config.suite is not Suite.train
        if not isinstance(config, RunConfig) or not config.dry_run or is_measurement:
            return launcher.start(config)
        from txl.cli.overridden import has_published_recipe, overridden_values
        from txl.launch.start import show_dry_run

        overridden = overridden_values(config, overrides, self.name)
        return show_dry_run(config, overridden, has_published_recipe(config))

    def wait(self) -> None:
        """Waits for submitted jobs, then says what can follow the runs that have ended."""
        if self.launcher is not None:
            self.codes.append(self.launcher.wait())
            self.launcher.show_next_commands(self.is_sweep)


@contextlib.contextmanager
def _sweep_folder(kind: type, overrides: list[str], many: bool) -> Iterator[None]:
    """Hydra writes multirun.yaml into the folder of a sweep. Only trainings have one: elsewhere the file goes again.

    Nor has a dry run. Other launchers of Hydra put their jobs there, so that they keep it.
    """
    own = any(override.startswith(("hydra.sweep", "hydra/launcher")) for override in overrides)
    is_dry = any(re.fullmatch(r"(?i)dry_run=(true|yes|on|1)", override) for override in overrides)
    if not many or own or (kind is RunConfig and not is_dry):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        sys.argv.insert(1, f"hydra.sweep.dir={folder}")
        yield


def _set_environment() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself and exits with 1
    if "RANK" in os.environ:  # as our own launcher: otherwise every rank prints a note about find_unused_parameters
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # For jobs of hydra/launcher=submitit_slurm: a dead rank ends the others, and they find this package.
    os.environ.setdefault("SLURM_KILL_BAD_EXIT", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))


def quote_typed_text(override: str) -> str:
    """Quotes the value of `text=` and `prompt=` for Hydra, so that `text=Well, (what) ${now}?` means just that.

    Values that are quoted already, and other keys, stay as they are.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    override = as_typed_list(override)
    key, _, value = override.partition("=")
    if key not in TYPED_TEXT or value in ("", "null") or re.fullmatch(r"""(["'])(?:(?!\1).)*\1""", value, re.DOTALL):
        return override
    plain = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no reference to another key
    return f"{key}={QuotedString(plain, Quote.double).with_quotes()}"


def as_typed_list(override: str) -> str:
    """Makes a list of the single text of `stop=` and `stop_tokens=`. Lists, and other keys, stay as they are."""
    key, _, value = override.partition("=")
    if key not in TYPED_LISTS or (value.startswith("[") and value.endswith("]")):
        return override
    text = quote_typed_text(f"text={value}").removeprefix("text=")
    return f"{key}=[]" if value in ("", "null") else f"{key}=[{text}]"


def checked_config(cfg: DictConfig, kind: type[Config], label: str = "") -> Config:
    """Returns Hydra's configuration as checked dataclasses, with the global batch size.

    Args:
        cfg: As composed.
        kind: What it is converted to.
        label: What a point of a sweep has in the name of its run folder (`point_label`).

    Raises:
        ConfigError: A value or a combination of values cannot work.
    """
    config = validate(to_typed(cfg, kind))
    return with_own_folder(with_global_batch(config), label) if isinstance(config, RunConfig) else config


def exit_code_of(task: Callable[[], int]) -> int:
    """The exit code of a run. Hydra would end a sweep at the first SystemExit, even if its code is 0."""
    try:
        return task()
    except ConfigError as error:
        return print_error(str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # `| head` has read enough
        discard_stdout()
        return BROKEN_PIPE
    except Exception as error:
        fault = disk_fault(error)
        if fault is not None:
            return print_error(f"{fault}; free some room or mend the disk, then start again (a training: resume=auto)")
        traceback.print_exc()
        return 1


def print_error(message: str, code: int = BAD_CONFIGURATION) -> int:
    """Prints an error as one line, on rank 0 only, and returns the exit code."""
    if os.environ.get("RANK", "0") in ("0", ""):
        print(error_line(message), file=sys.stderr, flush=True)
    return code
