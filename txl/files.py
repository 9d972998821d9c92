"""Files that are whole or absent: JSON, digests, locks, the project's own folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
CONF = PROJECT / "conf"


def read_json(path: Path) -> dict | None:
    """None where there is no file, or a torn one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """On disk when it returns."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value))  # json.dump is many times slower
        file.flush()
        os.fsync(file.fileno())


def digest(value: Any) -> str:
    """sha256, in hex, of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
