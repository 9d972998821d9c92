"""The tracker gives every record to every sink; a sink that fails costs a warning."""

import json

import pytest

from tests.support.tracked_runs import STEP, new_tracker
from txl.tracking.tracker import Tracker


def test_environment_is_recorded_when_asked_for(tmp_path):
    new_tracker(tmp_path, environment=True).close()
    assert json.loads((tmp_path / "environment.json").read_text())["python"]


class ListSink:
    """Remembers what it is called with; fails in the method `failing`."""

    def __init__(self, failing: str | None = None, essential: bool = False):
        self.calls, self.failing, self.essential = [], failing, essential

    def _note(self, *call):
        self.calls.append(call)
        if call[0] == self.failing:
            raise OSError("no space left")

    def rewind(self, step):
        self._note("rewind", step)

    def log(self, kind, step, values):
        self._note("log", kind, step)

    def summary(self, values):
        self._note("summary")

    def close(self, exit_code):
        self._note("close", exit_code)


def record_a_run(tracker):
    tracker.rewind(0)
    tracker.train_step(step=1, **STEP)
    tracker.progress(1)
    tracker.summary({})
    tracker.close(0)
    tracker.close(1)  # does nothing


WHOLE = [("rewind", 0), ("log", "train", 1), ("summary",), ("close", 0)]


def test_every_sink_gets_every_record():
    sinks = [ListSink(), ListSink()]
    record_a_run(Tracker(sinks))
    assert sinks[0].calls == sinks[1].calls == WHOLE


@pytest.mark.parametrize("failing", ["rewind", "log", "summary", "close"])
def test_a_sink_that_fails_costs_one_warning_and_the_others_nothing(failing, caplog):
    broken, other = ListSink(failing), ListSink()
    record_a_run(Tracker([broken, other]))
    assert other.calls == WHOLE
    names = [call[0] for call in broken.calls]
    assert names[-1] == "close" and (failing == "close" or names[-2] == failing)
    assert [record.getMessage() for record in caplog.records] == [
        "list: OSError: no space left; the run goes on without it, metrics.jsonl holds everything"
    ]


def test_a_run_whose_metrics_cannot_be_written_ends():
    with pytest.raises(OSError, match="no space left"):
        record_a_run(Tracker([ListSink("log", essential=True)]))
