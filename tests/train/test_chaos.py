"""A short form of `make chaos`: tiny runs are disturbed in every way; continued, they are equal bit by bit."""

import json
import random
import subprocess
import sys

import pytest

from tests.support.entry_points import PROJECT, environment
from tools.chaos import reliability
from tools.chaos.operations import Operation
from tools.chaos.power_cut import disk_after
from tools.chaos.results import Results, Trial
from tools.chaos.shim import compiler

CAMPAIGNS = {"kills", "kills_at_operations", "power_cuts", "faults"}
WAYS = {"kills_at_operations": 1, "power_cuts": 4, "faults": 5}  # in which one file operation is disturbed


def campaign(folder, *arguments: str) -> list[dict]:
    """The results of `python -m tools.chaos`, of which none may have a problem."""
    results = folder / "trials.jsonl"
    command = [sys.executable, "-m", "tools.chaos", "--results", str(results), "--folder", str(folder / "runs")]
    done = subprocess.run(
        [*command, *arguments], cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in results.read_text().splitlines()]


@pytest.mark.timeout(1800)  # half a minute of computing; the machine may be shared
@pytest.mark.skipif(compiler() is None, reason="a C compiler builds the library that counts file operations")
def test_runs_survive_kills_power_cuts_and_faults(tmp_path):
    campaign(tmp_path, "--campaign", "kills", "--trials", "3", "--cases", "accumulation_two_processes")
    others = [word for name in sorted(WAYS) for word in ("--campaign", name)]
    trials = campaign(tmp_path, *others, "--sample", "1", "--cases", "dropout")
    assert {trial["campaign"] for trial in trials} == CAMPAIGNS and len(trials) == 3 + sum(WAYS.values())


INTERRUPTED = """
import errno, sys
from pathlib import Path
from tools.chaos.shim import FAIL_ONCE, Fault, Shim, reexec_with_shim
reexec_with_shim()
from txl.system.run_lock import held_lock
from txl.tracking.rewind_file import drop_later_lines
folder, shim = Path(sys.argv[1]), Shim()
for number in range(100):
    (folder / "lines").write_text("a\\nb\\nc\\n")
    shim.arm(folder, Fault(FAIL_ONCE, number, errno.EINTR))
    with held_lock(folder):
        drop_later_lines(folder / "lines", 0, lambda line, step: line != b"c\\n")
    assert (folder / "lines").read_text() == "a\\nb\\n"
    if shim.count() <= number:
        print(number, "operations")
        break
"""


@pytest.mark.skipif(compiler() is None, reason="a C compiler builds the library that counts file operations")
def test_an_interrupted_call_does_not_stop_locking_and_rewinding(tmp_path):
    """Python itself repeats most calls that a signal interrupts, but not `file.truncate`."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(compiler() is None, reason="a C compiler builds the library that counts file operations")
def test_every_kind_of_run_survives_kills_power_cuts_and_faults(tmp_path):
    trials = campaign(tmp_path, "--trials", "36", "--sample", "2", "--seed", "1")
    assert {trial["case"] for trial in trials} >= {"muon_two_processes", "sentences", "ids", "keep_1"}


def test_the_page_shows_what_the_campaigns_found(tmp_path, monkeypatch):
    page, results = tmp_path / "page.md", Results(tmp_path / "trials.jsonl")
    page.write_text(f"before\n{reliability.BEGIN}stale rows\n{reliability.END}after\n")
    results.add(Trial("kills", "plain", "0", "SIGKILL", lost=2, noticed=0.5))
    results.add(Trial("kills", "ids", "1", "SIGKILL", problem="x"))
    (tmp_path / "fuzz.json").write_text('{"texts": {"tried": 1000, "failures": [1]}}')
    names = ("rss_mb", "files", "open_files", "steps_per_cpu_second")
    run = {"steps": 7000, "log_bytes": 9} | dict.fromkeys(names, {"first": 1, "last": 2})
    times = ("report_short", "report_long", "resume_short", "resume_long")
    figures = {"run": run, "record": {"lines": 10} | dict.fromkeys(times, [1.5, 2])}
    (tmp_path / "long.json").write_text(json.dumps(figures))
    files = ["--trials", str(results.file), "--fuzz", f"{tmp_path}/fuzz.json", "--long", f"{tmp_path}/long.json"]
    monkeypatch.setattr(reliability, "DOCUMENT", page)
    monkeypatch.setattr(sys, "argv", ["reliability", *files])
    assert reliability.main() == 0 and reliability.main() == 0
    text = page.read_text()
    assert "| killed at a random instant | SIGKILL | 2 | 2 | 1 | 2 | 0.5 s |" in text and "stale" not in text
    assert "| texts in every language and encoding | 1,000 | 1 |" in text and "| 7,000 steps of a tiny model |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "| `txl report` | 1.50 | 1.50 |" in text


def test_results_are_read_again_without_a_line_that_was_cut(tmp_path):
    results = Results(tmp_path / "trials.jsonl")
    results.add(Trial("kills", "plain", "0", "SIGKILL"))
    results.add(Trial("kills", "plain", "1", "SIGKILL"))
    content = results.file.read_text()
    results.file.write_text(content[:-20])
    again = Results(results.file)
    assert again.has("kills", "plain", "0") and not again.has("kills", "plain", "1")


def test_after_a_power_cut_only_what_was_flushed_is_there(tmp_path):
    root = tmp_path / "run"
    names = [("mkdir", 0, "", b""), ("create", 1, "a", b""), ("write", 1, "a", b"kept"), ("fsync", 1, "a", b"")]
    names += [("fsync", 0, "", b""), ("write", 1, "a", b"lost"), ("create", 2, "b", b""), ("fsync", 2, "b", b"")]
    operations = [
        Operation(number, name, inode, 4 if data == b"lost" else 0, str(root / file), "", data)
        for number, (name, inode, file, data) in enumerate(names)
    ]
    disk_after(operations, root, before=len(operations)).write_after_cut("nothing", random.Random(0))
    assert (root / "a").read_bytes() == b"kept" and not (root / "b").exists()  # its name was not flushed
