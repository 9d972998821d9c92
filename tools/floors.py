"""The lowest versions that setup.cfg allows, as constraints for pip: python tools/floors.py > FILE (make test-floors).

What the requirements themselves require is as new as pip finds it.
"""

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def floors() -> list[str]:
    """`name==version` for every requirement of the package and of its extras."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = dict.fromkeys(line.strip() for text in lines for line in text.splitlines() if line.strip())
    found = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in required]
    without = [line for line, match in zip(required, found, strict=True) if not match]
    if without:
        sys.exit(f"error: setup.cfg names no lowest version for {', '.join(without)}")
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(floors()))
