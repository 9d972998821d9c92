"""The start of `train.py`, `evaluate.py` and `benchmark.py`: help is printed without loading anything else."""

import re
import shutil
import textwrap

from txl.files import CONF
from txl.system.console import escape_what_cannot_be_printed


def run_command(name: str, about: str, arguments: list[str]) -> int:
    """Runs a command that is configured by `conf/<name>.yaml`.

    Args:
        name: train, evaluate or benchmark.
        about: The beginning of what `--help` prints.
        arguments: The command line.

    Returns:
        The exit code.
    """
    escape_what_cannot_be_printed()
    if {"-h", "--help"} & set(arguments):
        print(help_text(name, about))
        return 0
    from txl.cli.hydra_main import run_with_hydra

    return run_with_hydra(name, arguments)


def help_text(name: str, about: str) -> str:
    """Returns the choices and keys of `conf/<name>.yaml` with their comments, in lines that fit the terminal."""
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    choices = [line.replace("  - ", "  ", 1) for line in lines if re.match(r"  - \w+: ", line)]
    keys = ["  " + line for line in lines if re.match(r"\w+: \S", line)]
    groups = ["Choices (group=option):", *choices, ""] if choices else []
    end = "All keys, their types and meanings: txl/config/; --cfg job prints them as composed."
    width = shutil.get_terminal_size().columns
    whole = [*about.strip().splitlines(), "", *groups, "Keys (key=value):", *keys, "", end]
    return "\n".join(_fitted(line, width) for line in whole)


def _fitted(line: str, width: int) -> str:
    """The line in lines of at most `width` columns; a comment goes on below its beginning."""
    before, mark, _ = line.partition("# ")
    indent = " " * (len(before) + 2 if mark and len(before) < width // 2 else 6)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
