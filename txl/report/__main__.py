"""`txl report RUN_FOLDER...` (also `python -m txl.report`): a loss curve for every run, and a table of all."""

import argparse
import sys
from pathlib import Path

from txl.errors import ConfigError
from txl.report.loss_curve import plot_loss_curve
from txl.report.runs import find_runs_with_metrics, read_run
from txl.report.table import format_runs_table


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="txl report", description="Plot and compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    try:
        runs = [read_run(folder) for folder in find_runs_with_metrics(parser.parse_args(arguments).runs)]
        for run in runs:
            for note in run.notes:
                print(f"note: {note}", file=sys.stderr)
            if run.train or run.valid:
                print(plot_loss_curve(run.folder))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_runs_table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
