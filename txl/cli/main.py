"""`txl COMMAND ARGUMENTS`: finds the module of a command, and imports nothing that another one needs."""

import importlib
import sys
from dataclasses import dataclass

from txl.config.did_you_mean import did_you_mean
from txl.errors import error_line
from txl.system.console import escape_what_cannot_be_printed
from txl.system.process_exit import BAD_CONFIGURATION, raise_on_stop_signals, run_as_process
from txl.version import __version__


@dataclass(frozen=True)
class Command:
    """A command of `txl`."""

    about: str
    module: str  # its `main(arguments)` returns the exit code
    first: tuple[str, ...] = ()  # arguments before those that were typed


COMMANDS = {
    "train": Command("train a model, here or as a SLURM job", "txl.cli.train"),
    "evaluate": Command("loss, perplexity or bits per character of a split or a text", "txl.cli.evaluate"),
    "generate": Command("text that follows a prompt", "txl.cli.generate"),
    "score": Command("scores of many texts, one per line of a file", "txl.cli.score"),
    "search": Command("search for good settings with Optuna; every trial is a training", "txl.cli.search"),
    "benchmark": Command("speed of training, inference and encoding on this machine", "txl.cli.benchmark"),
    "report": Command("compare runs: what differs, the best, curves, published tables", "txl.report.__main__"),
    "replay": Command("repeat the steps at which a training diverged", "txl.launch.replay"),
    "track": Command("give the record of finished runs to wandb or TensorBoard", "txl.cli.track"),
    "status": Command("what became of runs, on this machine and under SLURM", "txl.launch.status"),
    "cancel": Command("stop runs; a training saves first", "txl.launch.cancel"),
    "download": Command("fetch a known data set, or the archive at an address", "txl.data.download"),
    "import": Command("read a model of another implementation", "txl.checkpoint.__main__", ("import",)),
    "export": Command("write a model for another implementation", "txl.checkpoint.__main__", ("export",)),
}
HELP = """Transformer-XL language models: train, evaluate, compare.

Commands (txl COMMAND --help explains one):
{commands}

  txl train experiment=demo                  a small model; no download, minutes
  txl evaluate checkpoint=runs/demo/...      evaluate it
  txl generate checkpoint=runs/demo/... prompt="import "
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 for a command that does not exist."""
    escape_what_cannot_be_printed()
    if arguments is None:  # the installed command `txl`
        run_as_process(__name__)
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<12}{one.about}" for name, one in COMMANDS.items())), end="")
        return 0
    if name in ("-V", "--version"):
        print(f"txl {__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        print(error_line(f"{name} is not a command of txl{hint}"), file=sys.stderr)
        return BAD_CONFIGURATION
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    if not command.module.startswith("txl.cli"):  # those begin their work later
        raise_on_stop_signals()
    code: int = module.main([*command.first, *rest])
    return code
