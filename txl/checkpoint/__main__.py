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
    about = "Make a checkpoint of a model that another program saved."
    import_ = commands.add_parser("import", help=about, description=about)
    theirs = "the original's .pt file, weights alone, a folder of Hugging Face, or our export as safetensors"
    import_.add_argument("source", type=Path, help=theirs)
    import_.add_argument("target", type=Path, help="the checkpoint's folder, which is made")
    about = "Write a model for another program."
    export = commands.add_parser("export", help=about, description=about)
    export.add_argument("source", type=Path, help="a run folder, or a checkpoint")
    export.add_argument("target", type=Path, help="what is written: a file, for safetensors a folder")
    formats = (
        "reference: a .pt file of the original (the default); safetensors: weights, settings and vocabulary in a folder"
    )
    export.add_argument("--format", choices=["reference", "safetensors"], default="reference", help=formats)
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
