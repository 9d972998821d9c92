"""`python -m txl.checkpoint import SOURCE FOLDER` and `python -m txl.checkpoint export CHECKPOINT TARGET`."""

import argparse
import sys
from pathlib import Path

from txl.checkpoint.exchange import export_model, import_model
from txl.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """`python -m txl.checkpoint import SOURCE FOLDER`, `... export CHECKPOINT TARGET`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m txl.checkpoint", description="Models from elsewhere, and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("import", help="a checkpoint of the reference (.pt) or of Hugging Face (folder)")
    two = commands.add_parser("export", help="to the reference's layout, or safetensors and JSON")
    for command in (one, two):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    two.add_argument("--format", choices=["reference", "safetensors"], default="reference")
    given = parser.parse_args(arguments)
    try:
        if given.command == "import":
            report = import_model(given.source, given.target)
        else:
            report = export_model(given.source, given.target, given.format)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
