"""One thread per process, set before torch starts: the models of the tests are too small for more. And the private
SLURM cluster that several test modules share."""

import logging
import os
import sys
from pathlib import Path

import pytest

from tests.support import slurm_cluster
from tests.support.slurm_site import Faults, Site

assert "torch" not in sys.modules, "torch reads OMP_NUM_THREADS when it is imported"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for the workers of pytest-xdist (`make test`): one worker runs a group, in its order.

    All tests on the SLURM cluster are one group, because they share the cluster. Every other module is a group, because
    its tests share fixtures.
    """
    for item in items:
        group = "slurm" if "cluster" in item.fixturenames else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:  # the longest groups first; the short ones fill the time that is left
        items.sort(key=lambda item: ("cluster" not in item.fixturenames, "train" not in item.path.parts))


@pytest.fixture(autouse=True)
def console():
    """A run in the tests' own process speaks on its console; the next test's is as it was before."""
    package = logging.getLogger("txl")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


@pytest.fixture(scope="session")
def cluster():
    reason = slurm_cluster.missing()
    if reason:
        # Continuous integration has SLURM and shows that it works; elsewhere these tests need not run.
        (pytest.fail if os.environ.get("TXL_REQUIRE_SLURM") else pytest.skip)(reason)
    running = slurm_cluster.Cluster(nodes=8).start()
    yield running
    running.stop()
    assert running.processes() == []


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory):
    return Site(cluster, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def faults():
    """What became of each fault; written as a table to the file that TXL_FAULTS_TABLE names."""
    found = Faults()
    yield found
    if "TXL_FAULTS_TABLE" in os.environ:
        found.write(Path(os.environ["TXL_FAULTS_TABLE"]))
