"""The parser of commands that are not configured by Hydra."""

import argparse
import sys
from typing import NoReturn

from txl.errors import error_line


class CommandParser(argparse.ArgumentParser):
    """As argparse's, but a mistake is a short line like every other one, below the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and end with exit code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{error_line(message)}\n")
