"""A notice when a run ends, fails or is requeued: tracking.notify=ADDRESS gets a JSON record."""

import logging
import os
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from txl.files import to_json
from txl.tracking.sinks import TrackedRun, describe_end

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that the address may take to answer


class NotifySink:
    """Posts one record when the run ends: what became of it, how far it came, and its results.

    The address is never written to logs or trackers, because it may hold a password or a key. A notice that cannot be
    delivered costs a warning.
    """

    essential = False

    def __init__(self, folder: Path, run: TrackedRun):
        self._folder, self._settings = folder, run.settings
        self._address = read_address(str(run.options.notify))
        self._last: dict[str, dict[str, Any]] = {}  # the newest record of each kind
        self._summary: dict[str, Any] = {}
        self._begun = False

    def rewind(self, step: int) -> None:
        """See Sink."""
        self._begun = True

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink. The newest record of each kind is part of the notice."""
        self._last[kind] = {"step": step} | dict(values)

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._summary = {key: value for key, value in values.items() if key != "sample"}

    def sync(self) -> None:
        """See Sink. Nothing is kept."""

    def close(self, exit_code: int) -> None:
        """See Sink. Waits at most PATIENCE seconds for the answer."""
        if not self._begun:
            return
        self._begun = False
        event = "stopped" if exit_code == 0 and not self._summary else describe_end(exit_code)
        notice = {
            "event": event,
            "exit_code": exit_code,
            "run": str(self._folder.absolute()),
            "name": self._settings["name"],
            "seed": self._settings["seed"],
            "job": os.environ.get("SLURM_JOB_ID"),
            "last": self._last,
            "summary": self._summary,
        }
        problems: list[str] = []
        # In a thread of its own, because looking up a name knows no time limit.
        thread = threading.Thread(target=self._post, args=(to_json(notice).encode(), problems), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            problems = [f"no answer within {PATIENCE:g} s"]
        for problem in problems:
            log.warning("notify: %s was not told (%s)", urlsplit(self._address).hostname, problem)

    def _post(self, body: bytes, problems: list[str]) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "txl"}
        try:
            request = urllib.request.Request(self._address, body, headers, method="POST")
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answer.read(1)
        except Exception as error:  # its text may contain the address
            problems.append(f"{type(error).__name__} {getattr(error, 'code', '')}".strip())


def read_address(value: str) -> str:
    """The address that tracking.notify gives, or that the environment variable of this name holds.

    Raises ValueError if there is no such variable, or if it holds no address.
    """
    address = value if "://" in value else os.environ.get(value, "")
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"tracking.notify: the environment variable {value} holds no address (http, https)")
    return address
