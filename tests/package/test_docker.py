"""docker/: what the image installs is installed here, in an environment of its own; files are linted by `make lint`."""

import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import torch

from txl import __version__

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILE = (PROJECT / "docker" / "Dockerfile").read_text()


def image_without_its_last_copy(folder: Path) -> Path:
    """The project's folder of the image when `RUN docker/install.sh` runs: what the COPY lines before it name."""
    before, _, _ = DOCKERFILE.partition("RUN docker/install.sh")
    for sources, target in re.findall(r"^COPY (.*) (\S+)$", before, re.MULTILINE):
        for source in sources.split():
            (folder / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / source, folder / target)
    return folder


def copy_everything(folder: Path) -> None:
    """What the image's last COPY does, but for tests and documents."""
    for name in ("txl", "conf", "hydra_plugins"):
        shutil.copytree(PROJECT / name, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def install(folder: Path, python: Path, **settings: str) -> str:
    """Run docker/install.sh with the `python` of an environment; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= settings | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["docker/install.sh"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_txl(python: Path, *arguments: str) -> str:
    """What `txl` of an environment prints."""
    command = [python.with_name("txl"), *arguments]
    return subprocess.run(command, cwd=python.parent, capture_output=True, text=True, check=True).stdout


def test_a_base_image_with_torch_keeps_its_versions(tmp_path):
    """The base image brings all packages but this one, in versions of its own."""
    folder = image_without_its_last_copy(tmp_path / "workspace" / "txl")
    (folder / "constraints.txt").write_text("torch==0\n")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    install(folder, python, PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", EXTRAS="")
    copy_everything(folder)
    assert run_txl(python, "--version") == f"txl {__version__}\n"
    assert "processes    1" in run_txl(python, "train", "experiment=demo", "dry_run=true")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it downloads everything
def test_an_image_of_python_alone_gets_everything(tmp_path):
    folder = image_without_its_last_copy(tmp_path / "workspace" / "txl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install(folder, python, EXTRAS=re.search(r"^ARG EXTRAS=(.*)", DOCKERFILE, re.MULTILINE)[1])
    copy_everything(folder)
    assert run_txl(python, "--version") == f"txl {__version__}\n"
    assert "processes    1" in run_txl(python, "train", "experiment=demo", "tracking=tensorboard", "dry_run=true")


def test_the_image_runs_as_a_user_and_every_argument_is_used():
    assert re.findall(r"^USER (\w+)", DOCKERFILE, re.MULTILINE)[-1:] == ["txl"]
    script = (PROJECT / "docker" / "install.sh").read_text()
    for name in re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE):
        assert f"${{{name}" in DOCKERFILE + script, name


def test_python_of_the_image_is_supported():
    version = re.search(r"^ARG BASE=python:([\d.]+)", DOCKERFILE, re.MULTILINE)[1]
    assert f"Python :: {version}\n" in (PROJECT / "setup.cfg").read_text()
