"""Notice that a run hangs: no rank makes progress for some minutes. Then every rank writes its stack and ends.

Whatever takes long calls `note_progress`: training steps, segments of an evaluation, blocks of text that are encoded,
writes of a checkpoint. A rank that waits for another one makes no progress itself, but the other one does, so that
encoding a large text or saving to a slow file system is no hang. Every rank runs a thread that looks at the counts of
all ranks in logs/rank_N.progress. The thread of a stopped process (SIGSTOP, a lost node) cannot look, but the others
name its rank.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from txl.files import read_json
from txl.system.world import World

BEFORE_FIRST_STEP = 6.0  # times the limit: start-up, compilation and encoding take longer
AFTER_STOP_SIGNAL = 0.1  # times the limit: who asked a run to stop should not wait long
LOOKS_PER_LIMIT = 10  # a rank looks at its progress at least this often within the limit
LONGEST_INTERVAL = 10.0  # seconds between two looks
LONGEST_GRACE = 30.0  # seconds that a rank waits for the others to write their stacks

_done = 0  # pieces of work of this process
_steps = 0
_waiting = False
_stopping = False


def note_progress(is_step: bool = False) -> None:
    """Say that this process has done a piece of work; `is_step`: that a training step or a segment is done."""
    global _done, _steps
    _done += 1
    _steps += is_step


def note_stop_signal() -> None:
    """Say that this process was asked to stop: from now on a hang is noticed sooner."""
    global _stopping
    _stopping = True


@contextlib.contextmanager
def waiting_for_ranks() -> Iterator[None]:
    """Around a collective: this rank waits for the others, so that it is not the one that they wait for."""
    global _waiting
    before, _waiting = _waiting, True
    try:
        yield
    finally:
        _waiting = before


class Reported(NamedTuple):
    """The progress of one rank."""

    done: int  # pieces of work
    steps: int
    waiting: bool  # in a collective
    age: float  # seconds since its thread wrote last


class HangWatch:
    """The watching thread of one rank.

    Args:
        folder: The run folder; its logs/ is shared by all ranks.
        world: This rank among the others.
        minutes: How long no rank makes progress before this rank ends. After a stop signal, a tenth of it.
    """

    def __init__(self, folder: Path, world: World, minutes: float):
        self.logs, self.world, self.limit = folder / "logs", world, 60 * minutes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def start(self) -> "HangWatch":
        """Start watching."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop watching: this rank's work is done."""
        self._ended.set()
        self._thread.join()
        self._file(self.world.rank).unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self.logs / f"rank_{rank}.progress"

    def _watch(self) -> None:
        own, others, since = -1, None, time.monotonic()
        while not self._ended.wait(min(self.limit / LOOKS_PER_LIMIT, LONGEST_INTERVAL)):
            self._report()
            waited = time.monotonic() - since
            limit = self.limit * (AFTER_STOP_SIGNAL if _stopping else 1 if _steps else BEFORE_FIRST_STEP)
            if _done != own:
                own, others, since = _done, None, time.monotonic()
            elif waited > limit / 2:  # others are asked only then: their reports lie on a shared file system
                total = sum(report.done for report in self._reports().values())
                if others is not None and total != others:
                    since = time.monotonic()
                elif waited > limit:
                    self._end(waited)
                others = total

    def _report(self) -> None:
        file = self._file(self.world.rank)
        partial = file.with_name(f".{file.name}.partial")
        try:
            partial.write_text(json.dumps({"done": _done, "steps": _steps, "waiting": _waiting}))
            os.replace(partial, file)
        except OSError:
            pass  # a full disk is no hang: whoever has something to save will say so

    def _reports(self) -> dict[int, Reported]:
        found = {}
        for rank in range(self.world.world_size):
            values = read_json(self._file(rank))
            if values is not None:
                age = time.time() - self._file(rank).stat().st_mtime
                found[rank] = Reported(values["done"], values["steps"], values["waiting"], age)
        return found

    def _end(self, seconds: float) -> None:
        """Write all stacks to this rank's log, name the ranks that did not arrive, and end this process."""
        reports = self._reports()
        late = describe_laggards(reports, self.world, seconds)
        line = f"no rank made progress for {seconds / 60:.1f} minutes; {late}"
        with open(self.logs / f"rank_{self.world.rank}.log", "a") as log:
            log.write(f"{line}\nPython stacks of rank {self.world.rank}:\n")
            log.flush()
            faulthandler.dump_traceback(log, all_threads=True)
        text = f"error: {line}; the stack of each rank is in {self.logs}/rank_N.log\n"
        (self.logs / f"rank_{self.world.rank}.error").write_text(text)
        if self.world.is_main:
            print(text, end="", file=sys.stderr, flush=True)
        self._wait_for_other_stacks()
        os._exit(1)

    def _wait_for_other_stacks(self) -> None:
        """The first rank that ends makes the launcher kill the others: let them write their stacks first."""
        deadline = time.monotonic() + min(self.limit, LONGEST_GRACE)
        errors = [self.logs / f"rank_{rank}.error" for rank in range(self.world.world_size)]
        while time.monotonic() < deadline and not all(error.exists() for error in errors):
            time.sleep(0.2)


def describe_laggards(reports: dict[int, Reported], world: World, seconds: float) -> str:
    """Which ranks the others wait for: those that stand still, are in no collective, or did the least work.


    Args:
        reports: By rank, as far as ranks have reported.
        world: This rank among the others.
        seconds: How long nothing has happened.

    Returns:
        `rank 3 did not arrive (12 steps, the others 13)`, for example.
    """
    missing = [rank for rank in range(world.world_size) if rank not in reports]
    if missing:
        return f"{_ranks(missing)} never reported"
    stopped = [rank for rank, report in reports.items() if report.age > seconds / 2 and rank != world.rank]
    if stopped:
        return f"the process of {_ranks(stopped)} is stopped or its node is lost"
    busy = [rank for rank, report in reports.items() if not report.waiting]
    if not 0 < len(busy) < len(reports):
        fewest = min(report.done for report in reports.values())
        busy = [rank for rank, report in reports.items() if report.done == fewest]
    if len(busy) == len(reports):
        return "all ranks did the same work"
    return f"{_ranks(busy)} did not arrive ({reports[busy[0]].steps} steps done)"


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
