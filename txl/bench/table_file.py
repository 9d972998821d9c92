"""The JSON file of a benchmark's table (`benchmark.json=FILE`)."""

from pathlib import Path
from typing import Any

from txl.config.output_files import writing_output
from txl.files import write_json
from txl.system.versions_and_devices import environment_record


def write_table(file: Path, rows: list[dict[str, Any]], machine: dict[str, Any] | None = None) -> None:
    """Write {"machine": …, "rows": …}; the folder is made if it is missing. `machine`: None records this one."""
    with writing_output("benchmark.json", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": environment_record() if machine is None else machine, "rows": rows}, indent=1)
