"""Python versions that the package does not support get one line, whatever is started with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# The interpreter of these tests, but for what it says of its version.
CHANGED = "import sys; sys.version_info = ({version}, 0, 'final', 0); sys.version = '3.x'; sys.argv = sys.argv[1:]; "
SUPPORTED = "needs Python 3.11, 3.12 or 3.13"


def answer_of(command: list[str], cwd: Path) -> str:
    """What a command that exits with 2 writes to standard error; it prints nothing else."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "", done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("version", ["3, 10", "3, 14"])
@pytest.mark.parametrize("program", ["train.py", "txl"])
def test_a_command_is_answered_in_one_line(program, version, tmp_path):
    how, name = ("module", "txl") if program == "txl" else ("path", str(PROJECT / program))
    code = CHANGED.format(version=version) + f"import runpy; runpy.run_{how}({name!r}, run_name='__main__')"
    said = answer_of([sys.executable, "-c", code, program, "--help"], tmp_path)
    assert said == f"error: txl {SUPPORTED}; {sys.executable} is 3.x\n"


@pytest.mark.parametrize("version", ["3, 10", "3, 14"])
def test_make_is_answered_in_one_line_and_leaves_no_environment(version, tmp_path):
    python = tmp_path / "python"
    code = CHANGED.format(version=version) + "exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    python.chmod(0o755)
    said = answer_of(["make", "-s", "-C", str(PROJECT), f"PYTHON={python}", f"VENV={tmp_path}/venv", "demo"], tmp_path)
    assert said.startswith(f"error: {SUPPORTED} as {python}; choose one with make PYTHON=python3.13\n")
    assert not (tmp_path / "venv").exists()
