"""Percentiles of latencies, and a clock that does not import torch."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txl.system.timing import percentiles, synchronize


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
