"""Everything that needs a GPU, in one call of at most nine minutes: correctness first, then the tables.

    make gpu-check                                     # writes docs/results/gpu.md and gpu.json
    python3 tests/gpu_check.py --out FOLDER            # on a bare machine: all files go to FOLDER
    python3 tests/gpu_check.py attention train         # these steps alone
    GPU_CHECK=tiny python3 tests/gpu_check.py          # a rehearsal on a CPU, with small sizes

Every step is a process with a time limit of its own: one that dies or hangs takes nothing with it. Each finding is one
line of FOLDER/rows.jsonl, on disk at once, so that a call that is cut off loses nothing.

A machine with torch and Triton but without this project's other packages and without a network: run `make gpu-wheels`
elsewhere and copy the checkout with its folder `.whl` there. What cannot be imported is installed from it, into a
temporary folder. `--reference FOLDER` runs FOLDER/speed.py too, which measures another implementation in turn: it gets
words such as `train batch=32` and prints one line of JSON.

Exits with 1 if a check failed, and with 2 if there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # this is run as a script

TINY = os.environ.get("GPU_CHECK") == "tiny"
SECONDS = 530  # of the whole call
NEEDED = ("hydra", "omegaconf", "antlr4")  # packages that a machine for torch may lack; submitit is imported late


class Step(NamedTuple):
    """One process of the check."""

    name: str  # of a function in tests/support/gpu_correctness.py, gpu_pairs.py or gpu_speed.py; or several
    seconds: int  # after which it is ended


# Steps of one line run side by side. What is timed runs alone.
PLAN = [
    [Step("probe", 40)],
    [Step(name, 120) for name in ("kernels", "softmax", "golden", "curves", "deterministic", "warm")],
    [Step("attention", 35)],
    [Step("pairs", 45)],
    [Step("train", 190)],
    [Step("profile", 50)],
    [Step("inference", 80)],
    [Step("reference", 60)],
]
REHEARSAL = [  # two processes, because importing torch takes longer than the small sizes
    [
        Step("kernels attention", 120),
        Step("probe softmax golden curves deterministic warm pairs train profile inference", 120),
    ],
]


def main() -> int:
    """Run the steps, write the page, print what is not well; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="probe kernels golden ...; none: all of them")
    parser.add_argument("--out", type=Path, help="folder for rows.jsonl, the logs, gpu.md and gpu.json")
    parser.add_argument("--reference", type=Path, help="folder with speed.py of another implementation")
    parser.add_argument("--revision", help="what is measured; default: git's commit")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the step's own process
    parser.add_argument("--until", type=float, default=time.time() + SECONDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    known = [step.name for line in PLAN for step in line]  # one name each
    if unknown := set(given.steps) - set(known):
        parser.error(f"unknown steps {' '.join(sorted(unknown))}; there are {' '.join(known)}")
    if given.one:
        return run_one(given)
    out = given.out or (Path(tempfile.mkdtemp(prefix="gpu-check-")) if TINY else PROJECT / "build" / "gpu-check")
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)
    install_wheels(out)
    if not TINY and not sees_gpu():
        print("error: torch sees no GPU here; GPU_CHECK=tiny rehearses on a CPU", file=sys.stderr)
        return 2
    run_steps(given, out)
    return write_page(given, out)


def run_one(given: argparse.Namespace) -> int:
    """Be the process of one step."""
    from tests.support import gpu_correctness, gpu_pairs, gpu_speed
    from tests.support.gpu_rows import Rows

    modules = (gpu_correctness, gpu_pairs, gpu_speed)
    for name in given.steps:
        rows = Rows(given.out / "rows.jsonl", name, given.until, TINY, given.reference)
        step = next(getattr(module, name) for module in modules if hasattr(module, name))
        with rows.guarded(what="the step"):
            step(rows)
    return 0


def run_steps(given: argparse.Namespace, out: Path) -> None:
    """Start the chosen steps line by line, and end each at its limit."""
    for line in REHEARSAL if TINY and not given.steps else PLAN:
        chosen = [step for step in line if not given.steps or step.name in given.steps]
        began = time.time()
        started = [(step, start(step, given, out)) for step in chosen if began + 15 < given.until]
        for step, process in started:
            end(step, process, min(began + step.seconds, given.until), out)
        for step in chosen[len(started) :]:
            add_row(out, step.name, skipped="no time was left")


def start(step: Step, given: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start the process of a step; it knows when to begin nothing more."""
    until = min(time.time() + step.seconds - 10, given.until)
    command = [sys.executable, __file__, *step.name.split(), "--one", f"--out={out}", f"--until={until}"]
    command += [f"--reference={given.reference}"] if given.reference else []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(search_path(out))}
    environment |= {name: str(out / folder) for name, folder in CACHES.items()}
    if TINY:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    with open(out / f"{step.name}.log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=PROJECT, start_new_session=True)


CACHES = {"TORCHINDUCTOR_CACHE_DIR": "cache/inductor", "TRITON_CACHE_DIR": "cache/triton"}


def search_path(out: Path) -> list[str]:
    """Where the processes of the steps find modules."""
    given = os.environ.get("PYTHONPATH")
    return [str(out / "cache" / "site"), str(PROJECT), *([given] if given else [])]


def end(step: Step, process: subprocess.Popen[bytes], until: float, out: Path) -> None:
    """Wait for a step until its limit; then kill it with all that it started."""
    began = time.time()
    try:
        code = process.wait(max(1, until - began))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        add_row(out, step.name, cut_off=f"after {step.seconds} s")
        return
    if code:
        tail = (out / f"{step.name}.log").read_text(errors="replace")[-400:]
        add_row(out, step.name, failed=f"exit code {code}: {tail}")


def add_row(out: Path, step: str, **values: object) -> None:
    """A row of this process, which does not import torch."""
    from tests.support.gpu_rows import Rows

    Rows(out / "rows.jsonl", step, 0.0, TINY).add(**values)


def install_wheels(out: Path) -> None:
    """Install what cannot be imported from PROJECT/.whl, if that is there."""
    wheels = sorted((PROJECT / ".whl").glob("*.whl"))
    if wheels and any(importlib.util.find_spec(name) is None for name in NEEDED):
        site = out / "cache" / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*pip, f"--target={site}", *map(str, wheels)], check=True)
        sys.path.insert(0, str(site))


def sees_gpu() -> bool:
    """Whether torch can use a GPU, asked in a process of its own: this one must not hold a part of its memory."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def write_page(given: argparse.Namespace, out: Path) -> int:
    """Write gpu.md and gpu.json; returns the exit code."""
    from tests.support.gpu_rows import format_page, is_well
    from txl.system.versions_and_devices import git_state

    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    revision = given.revision or (git_state(PROJECT) or {}).get("commit", "unknown")
    folder = out if given.out or TINY else PROJECT / "docs" / "results"
    (folder / "gpu.json").write_text(json.dumps({"revision": revision, "rows": rows}, indent=1) + "\n")
    (folder / "gpu.md").write_text(format_page(rows, revision))
    bad = [row for row in rows if not is_well(row)]
    print(f"{len(rows)} rows in {folder}/gpu.md; not well: {len(bad)}")
    for row in bad:
        print("  " + json.dumps({key: value for key, value in row.items() if key != "where"}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
