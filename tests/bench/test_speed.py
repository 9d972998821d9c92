"""tools/speed.py compares two revisions task by task."""

import re
import subprocess
import sys

import pytest

from tests.support.entry_points import PROJECT, environment
from tests.support.revisions import short_commit

pytestmark = pytest.mark.skipif(short_commit("HEAD") is None, reason="this is no checkout of git")

ROW = re.compile(r"\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| [\d.]+ to [\d.]+ \| [\d.]+ \|")


def table(*arguments: str) -> dict[str, tuple[float, ...]]:
    """By task: seconds before, seconds now, their ratio."""
    command = [sys.executable, str(PROJECT / "tools" / "speed.py"), "HEAD", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: tuple(map(float, numbers)) for name, *numbers in ROW.findall(done.stdout)}


def test_a_task_is_measured_on_both_revisions_and_the_checkout_is_gone_afterwards():
    found = table("--only", "help", "--rounds", "1")
    before, now, ratio = found["help"]
    assert before > 0 and abs(ratio - before / now) < 0.05 * ratio
    kept = subprocess.run(["git", "-C", str(PROJECT), "worktree", "list"], capture_output=True, text=True).stdout
    assert "speed-" not in kept


@pytest.mark.slow
def test_every_task_can_be_measured():
    found = table("--rounds", "1", "--layers", "1", "--words", "500")
    assert list(found) == "train infer encode help dry_run first_step resume report".split()
