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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """How `make test` shares the tests among its workers: a module goes to one worker, as its tests share fixtures.

    All of tests/launch goes to one worker, because those tests share a SLURM cluster. (`--dist loadgroup` would say
    the same, but pytest-xdist 3.8 does not see the groups with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "launch" if module.startswith("tests/launch/") else module

    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers begin with the longest tests: the cluster's, which wait most of the time, beside those of training."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: ("launch" not in item.path.parts, "train" not in item.path.parts))


@pytest.fixture(autouse=True)
def console():
    """A run in the tests' own process speaks on its console; the next test's is as it was before."""
    package = logging.getLogger("txl")
    handlers, level = list(package.handlers), package.level
    assert package.propagate and not package.disabled, "a test or a fixture before this one cut the log off"
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
