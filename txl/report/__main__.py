"""`txl report PATH...` (also `python -m txl.report`): compares runs."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from txl.errors import ConfigError, shortened
from txl.report.compare import compare_runs
from txl.report.formats import tables_to_json, to_csv, to_latex, to_markdown, to_terminal
from txl.report.grouping import Selection
from txl.report.runs import DEPTH, RunRecord, read_run, runs_below
from txl.report.tables import Table
from txl.system.console import is_terminal

MOST_MESSAGE = 300  # characters of an error message
FORMATS = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex, "json": tables_to_json}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        print_text(_report(options))
    except ConfigError as error:
        print(f"error: {shortened(str(error), MOST_MESSAGE)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="txl report", description="Compare runs, sweeps and folders of them.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="run folders, or folders of them")
    parser.add_argument("--sort", metavar="KEY", help="sort by a column or a key (default: valid)")
    parser.add_argument("--where", metavar="KEY=VALUE", action="append", default=[], help="only runs with this value")
    parser.add_argument("--by", metavar="KEY", action="append", default=[], help="one row per value of this key")
    parser.add_argument("--each", action="store_true", help="a row for every run, no means")
    formats = parser.add_mutually_exclusive_group()
    for name in FORMATS:
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=f"print {name}")
    return parser


def _report(options: argparse.Namespace) -> str:
    runs = find_runs(options.paths)
    selection = Selection(options.where, options.by, options.sort, options.each)
    return show_tables([compare_runs(runs, selection)], options.format)


def show_tables(tables: list[Table], format: str | None) -> str:
    """Tables in a format of FORMATS; None: for the terminal."""
    if format is not None:
        return FORMATS[format](tables)
    width = shutil.get_terminal_size().columns
    return to_terminal(tables, width, color=is_terminal(sys.stdout) and "NO_COLOR" not in os.environ)


def find_runs(paths: list[Path]) -> list[RunRecord]:
    """The runs at or below these paths; one that is named twice comes once.

    Raises:
        ConfigError: A path holds no run.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = runs_below(path) if path.is_dir() else []
        if not found:
            what = f"holds no metrics.jsonl in it or up to {DEPTH} folders below" if path.is_dir() else "is no folder"
            raise ConfigError(f"{path} {what}; give run folders, or folders of runs, such as runs/<name>")
        folders |= {folder.resolve(): None for folder in found}
    return [read_run(folder) for folder in folders]


def print_text(text: str) -> None:
    """Print on standard output, also where its encoding lacks a character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").replace("─", "-").encode(encoding, "replace").decode(encoding)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
