"""`python -m txl.report RUN_FOLDER...`"""

import argparse
import sys
from pathlib import Path

from txl.errors import ConfigError
from txl.report.loss_curve import plot_loss_curve
from txl.report.runs import read_run, run_folders
from txl.report.table import table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m txl.report", description="Plot and compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    try:
        runs = [read_run(folder) for folder in run_folders(parser.parse_args(arguments).runs)]
        for run in runs:
            if run.train or run.valid:
                print(plot_loss_curve(run.folder))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
