"""`txl import SOURCE FOLDER` and `txl export CHECKPOINT TARGET`; also `python -m txl.checkpoint import|export ...`."""

import sys
from pathlib import Path

from txl.checkpoint.exchange import export_model, import_model
from txl.errors import ConfigError, error_line
from txl.system.command_parser import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser(prog="txl", description="Convert models from and to the formats of other programs.")
    commands = parser.add_subparsers(dest="command", required=True)
    import_ = commands.add_parser("import", help="convert the reference's checkpoint (.pt) or a folder of Hugging Face")
    export = commands.add_parser("export", help="convert to the reference's format, or to safetensors and JSON")
    for command in (import_, export):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    export.add_argument("--format", choices=["reference", "safetensors"], default="reference")
    given = parser.parse_args(arguments)
    try:
        if given.command == "import":
            report = import_model(given.source, given.target)
        else:
            report = export_model(given.source, given.target, given.format)
    except ConfigError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
