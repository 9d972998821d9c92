"""Known advisories about the versions in constraints.txt: `make audit`.

pip-audit asks a database of advisories over the network. Where it is missing or cannot reach the database, this says
that nothing was checked. Exit code: 0: no advisory is known; 1: there are some; 3: nothing was checked.
"""

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PIP_AUDIT = [sys.executable, "-m", "pip_audit"]
FOUND = "known vulnerabilit"  # in pip-audit's summary, if it has an answer
SECONDS = 300
NOT_CHECKED = 3


def main(command: list[str], constraints: Path = CONSTRAINTS) -> int:
    """Run pip-audit on the file; returns the exit code."""
    try:
        arguments = [*command, "--no-deps", "--disable-pip", "-r", str(constraints)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return not_checked(str(error))
    said = done.stdout + done.stderr
    if FOUND not in said:
        return not_checked((said.strip().splitlines() or ["no answer"])[-1])
    print(said, end="")
    return done.returncode


def not_checked(reason: str) -> int:
    """Say that nothing was checked, and what would help."""
    print(
        f"not checked: {reason[:150]}; {CONSTRAINTS.name} was compared with no advisory. `make audit` needs pip-audit "
        "(pip install pip-audit) and a network",
        file=sys.stderr,
    )
    return NOT_CHECKED


if __name__ == "__main__":
    sys.exit(main(PIP_AUDIT))
