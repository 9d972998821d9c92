"""Throughput and latencies, against a clock that the test turns."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txl.system.timing import Throughput, percentiles, synchronize


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_throughput_is_tokens_over_seconds():
    clock = Clock()
    meter = Throughput(clock=clock)
    assert meter.tokens_per_second == 0.0 == meter.ms_per_step
    for _ in range(4):
        clock.now += 0.5
        meter.step(100)
    assert (meter.steps, meter.tokens, meter.seconds) == (4, 400, 2.0)
    assert meter.tokens_per_second == 200.0 and meter.ms_per_step == 500.0


def test_warm_up_steps_and_pauses_do_not_count():
    clock = Clock()
    meter = Throughput(warmup_steps=2, clock=clock)
    for seconds in (30.0, 10.0, 1.0, 1.0):  # compiling takes the first ones
        clock.now += seconds
        meter.step(50)
        with meter.paused():
            clock.now += 7.0  # validation
    assert (meter.tokens, meter.seconds, meter.tokens_per_second) == (100, 2.0, 50.0)


def test_a_pause_inside_the_warm_up_or_twice_changes_nothing():
    clock = Clock()
    meter = Throughput(warmup_steps=1, clock=clock)
    clock.now += 5.0
    meter.pause()
    meter.step(10)
    clock.now += 5.0
    meter.pause()
    clock.now += 5.0
    meter.resume()
    meter.resume()
    clock.now += 2.0
    meter.step(10)
    assert (meter.tokens, meter.seconds) == (10, 2.0)


def test_a_failing_validation_does_not_stop_the_clock_for_good():
    clock = Clock()
    meter = Throughput(clock=clock)
    with pytest.raises(KeyError), meter.paused():
        raise KeyError
    clock.now += 1.0
    assert meter.seconds == 1.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_percentiles_are_numpys(latencies):
    found = percentiles(latencies)
    assert list(found) == ["mean", "p50", "p90", "p95", "p99"]
    expected = [np.mean(latencies), *np.percentile(latencies, [50, 90, 95, 99])]
    assert list(found.values()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_percentiles_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="at least one"):
        percentiles([])


def test_synchronize_does_not_import_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    synchronize()
    assert "torch" not in sys.modules
