"""`txl report PATH...` (also `python -m txl.report`): compares runs, evaluations and benchmarks."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from txl.errors import ConfigError, error_line
from txl.report.choose_tables import TABLES, ReportInput, choose_tables
from txl.report.formats import print_text, tables_to_json, to_csv, to_latex, to_markdown, to_terminal
from txl.report.grouping import Selection
from txl.report.page import check_page_target, write_page
from txl.report.result_files import ResultFile, read_result_file
from txl.report.runs import DEPTH, read_run, runs_below
from txl.report.tables import Table, show_short
from txl.report.watch import watch_runs
from txl.system.command_parser import CommandParser
from txl.system.console import discard_stdout, is_terminal

FORMATS = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex, "json": tables_to_json}
WATCH_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        report(options)
    except ConfigError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # of --watch
        return 0
    except BrokenPipeError:  # `| head` has read enough
        discard_stdout()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="txl report", description="Compare runs, evaluations and benchmarks.")
    paths = "run folders, folders of them, and JSON files of txl evaluate and txl benchmark (json=FILE)"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=paths)
    parser.add_argument("--sort", metavar="KEY", help="sort by a column or a key (default: valid)")
    parser.add_argument("--where", metavar="KEY=VALUE", action="append", default=[], help="only runs with this value")
    parser.add_argument(
        "--by", metavar="KEY", action="append", default=[], help="one row per value of this key; a,b for several"
    )
    parser.add_argument("--each", action="store_true", help="a row for every run, no means")
    parser.add_argument(
        "--table",
        choices=TABLES,
        action="append",
        default=[],
        metavar="TABLE",
        help=f"only this; repeatable: {', '.join(TABLES)}",
    )
    formats = parser.add_mutually_exclusive_group()
    for name in FORMATS:
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=f"print {name}")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables, curves, configurations")
    parser.add_argument("--watch", action="store_true", help="show states, progress and losses until all have ended")
    parser.add_argument("--seconds", type=float, default=WATCH_SECONDS, help="between two looks of --watch")
    return parser


def report(options: argparse.Namespace) -> None:
    """Do what the command line asks for. Raises ConfigError for a mistake in it."""
    if options.html:
        check_page_target(options.html)
    folders, files = find_inputs(options.paths)
    if options.watch:
        if not folders:
            raise ConfigError("--watch needs run folders, or folders of them")
        watch_runs(lambda: find_inputs(options.paths)[0], max(0.1, options.seconds))
        folders, files = find_inputs(options.paths)
    given = ReportInput([read_run(folder) for folder in folders], files)
    selection = Selection(options.where, options.by, options.sort, options.each)
    tables = choose_tables(given, selection, options.table, everything=bool(options.html))
    if options.html:
        verdict = next((note for note in tables[0].notes if note.startswith("best: ")), "") if tables else ""
        write_page(options.html, given.selected(selection), tables, verdict)
        said = f"wrote {options.html} ({show_short(options.html.stat().st_size)}B)"
        if options.format is None:
            print_text(said)
            return
        print(said, file=sys.stderr)  # standard output is for the table
    if options.format == "csv" and not options.table:
        tables = tables[:1]  # a program that reads CSV expects one table
    print_text(show_tables(tables, options.format))


def show_tables(tables: list[Table], format: str | None) -> str:
    """Tables in a format of FORMATS; None: for the terminal."""
    if format is not None:
        return FORMATS[format](tables)
    width = shutil.get_terminal_size().columns
    return to_terminal(tables, width, color=is_terminal(sys.stdout) and "NO_COLOR" not in os.environ)


def find_inputs(paths: list[Path]) -> tuple[list[Path], list[ResultFile]]:
    """The run folders at or below these paths, and the files of results; one that is named twice comes once.

    Raises:
        ConfigError: A path holds no run and is no result.
    """
    folders: dict[Path, None] = {}
    files: dict[Path, ResultFile] = {}
    for path in paths:
        found = runs_below(path) if path.is_dir() else []
        if path.is_file():
            files.setdefault(path.resolve(), read_result_file(path))
        elif not found:
            what = f"holds no metrics.jsonl in it or up to {DEPTH} folders below" if path.is_dir() else "does not exist"
            raise ConfigError(f"{path} {what}; give run folders, or folders of runs, such as runs/<name>")
        folders |= {folder.resolve(): None for folder in found}
    return list(folders), list(files.values())


if __name__ == "__main__":
    sys.exit(main())
