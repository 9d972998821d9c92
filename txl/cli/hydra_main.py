"""What the entry points share: compose with Hydra, convert, check, run; a mistake is one line and exit code 2."""

import os
import re
import sys
import traceback
from collections.abc import Callable

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from txl.cli.user_conf import search_user_conf
from txl.config.compose import Config, register_types, to_typed
from txl.config.did_you_mean import did_you_mean, dotted_keys
from txl.config.error_messages import hydra_error
from txl.config.rules import validate
from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.files import CONF, PROJECT
from txl.plan.batch_split import with_global_batch
from txl.system.process_exit import BAD_CONFIGURATION, INTERRUPTED, TERMINATED, leave

STOPPED = {INTERRUPTED, TERMINATED}  # after these exit codes no further point of a sweep is tried


PROSE = {"text", "prompt"}  # keys whose values are text typed by hand, with commas and brackets that mean nothing more


def run(name: str, kind: type[Config], about: str, arguments: list[str]) -> int:
    """Compose `conf/<name>.yaml` with the command line, check the result, and start it; then wait for submitted jobs.

    With `-m`, every point is tried, whatever became of the one before, until somebody interrupts.

    Args:
        name: Of the file in conf/.
        kind: What it is converted to.
        about: The beginning of what `--help` prints.
        arguments: The command line: overrides, and Hydra's flags.

    Returns:
        The exit code, with `-m` the worst one of all points.
    """
    if {"-h", "--help"} & set(arguments):  # Hydra's own takes two seconds
        print(help_text(name, about))
        return 0
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    known_flags, flags = get_args_parser().parse_known_args(arguments)
    if flags:
        known = did_you_mean(flags[0].lstrip("-"), dotted_keys(kind))
        return complain(f"{flags[0]} is not a flag; options are written key=value{known}")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would otherwise print and hide behind exit code 1
    # For jobs of hydra/launcher=submitit_slurm: a dead rank ends the others, and they find this package.
    os.environ.setdefault("SLURM_KILL_BAD_EXIT", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    from txl.launch.start import Launcher

    launcher = Launcher()
    register_types()
    search_user_conf(known_flags.config_dir)
    sys.argv[1:] = arguments if {"-m", "--multirun"} & set(arguments) else map(quoted, arguments)  # Hydra reads it
    codes: list[int] = []

    def point(cfg: DictConfig) -> None:
        register_types()  # again: such a job starts here
        codes.append(_guarded(lambda: launcher.start(checked(cfg, kind))))
        if codes[-1] in STOPPED:
            raise KeyboardInterrupt  # the points that are left, too

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(point)()
        codes.append(launcher.wait())
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        return complain(hydra_error(error, kind))
    except KeyboardInterrupt:
        if not STOPPED & set(codes):
            codes.append(complain("interrupted", INTERRUPTED))
    if "RANK" in os.environ:
        leave(max(codes, default=0))
    return max(codes, default=0)


def quoted(argument: str) -> str:
    """`text=Well, (what) ${now}?` as Hydra must have it to mean just that; what is quoted already stays so."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = argument.partition("=")
    if key not in PROSE or value in ("", "null") or re.fullmatch(r"""(["'])(?:(?!\1).)*\1""", value, re.DOTALL):
        return argument
    plain = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # refers to no other key
    return f"{key}={QuotedString(plain, Quote.double).with_quotes()}"


def checked(cfg: DictConfig, kind: type[Config]) -> Config:
    """Hydra's configuration as dataclasses whose values make sense, the batch that of all processes."""
    config = validate(to_typed(cfg, kind))
    return with_global_batch(config) if isinstance(config, RunConfig) else config


def _guarded(task: Callable[[], int]) -> int:
    """Exit code of one run; Hydra would end a sweep at the first SystemExit, even at a good one."""
    try:
        return task()
    except ConfigError as error:
        return complain(str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


def help_text(name: str, about: str) -> str:
    """The choices and keys of `conf/<name>.yaml` with their comments."""
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    choices = [line.replace("  - ", "  ", 1) for line in lines if re.match(r"  - \w+: ", line)]
    keys = ["  " + line for line in lines if re.match(r"\w+: \S", line)]
    groups = ["Choices (group=option):", *choices, ""] if choices else []
    end = "All keys, their types and meanings: txl/config/; --cfg job prints them as composed."
    return "\n".join([about.strip(), "", *groups, "Keys (key=value):", *keys, "", end])


def complain(message: str, code: int = BAD_CONFIGURATION) -> int:
    """Print an error as one line, on rank 0 only; returns the exit code."""
    if os.environ.get("RANK", "0") not in ("0", ""):
        return code
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
