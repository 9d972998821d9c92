"""`python -m txl.launch status FOLDER...` and `... cancel FOLDER...`, which are `txl status` and `txl cancel`."""

import sys


def main(arguments: list[str]) -> int:
    """Run one of the two commands; returns the exit code."""
    from txl.launch import cancel, status

    commands = {"status": status.main, "cancel": cancel.main}
    if not arguments or arguments[0] not in commands:
        print(
            "usage: python -m txl.launch status|cancel FOLDER...   (run folders, or folders of runs)", file=sys.stderr
        )
        return 2
    return commands[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
