"""Results of trials: a line of JSON each, appended at once, so that a campaign goes on where it was stopped."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One disturbed run, and what became of it.

    Args:
        campaign: What was done: kills, kills_at_operations, power_cuts, faults.
        case: The kind of run.
        name: Which trial this is, among those of the campaign and case.
        fault: The fault in words, a row of the table.
        problem: What was wrong afterwards; None: the run was continued and equals an undisturbed one bit by bit.
        lost: Steps that had to be computed again.
        noticed: Seconds from the fault to the end of the disturbed run.
        disturbed: Whether the fault fell into the life of the run.
    """

    campaign: str
    case: str
    name: str
    fault: str
    problem: str | None = None
    lost: int = 0
    noticed: float = 0.0
    disturbed: bool = True


class Results:
    """The file of results."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.trials = [Trial(**values) for values in map(_parsed, self._lines()) if values is not None]
        self._done = {(trial.campaign, trial.case, trial.name) for trial in self.trials}

    def _lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    def has(self, campaign: str, case: str, name: str) -> bool:
        """Whether a trial was made already."""
        return (campaign, case, name) in self._done

    def add(self, trial: Trial) -> None:
        """Append a result."""
        self.trials.append(trial)
        self._done.add((trial.campaign, trial.case, trial.name))
        with open(self.file, "a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None  # the campaign was killed while it wrote the line
    return values if isinstance(values, dict) else None
