"""The wheel, installed into a fresh environment and used from a folder that has nothing to do with this checkout."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl import __version__

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = "setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE txl conf hydra_plugins".split()


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel; torch and the like are borrowed from the one that tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCES:
        part = PROJECT / name
        if part.is_dir():
            shutil.copytree(part, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(part, source)
    (source / "conf" / "site").mkdir(exist_ok=True)
    (source / "conf" / "site" / "slurm.yaml").write_text("partition: secret\n")
    build = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = folder / done.stdout.splitlines()[-1]
    venv.create(folder / "venv")
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "-q", str(wheel)], check=True)
    return python


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A working directory with a text, and an experiment of the user's own in conf/."""
    folder = tmp_path_factory.mktemp("elsewhere")
    values: dict = {"defaults": []}
    for override in [*write_corpus(folder / "text"), *TINY_RUN, "tracking.environment=true"]:
        name, value = override.split("=", 1)
        section, _, key = name.rpartition(".")
        if section:
            values.setdefault(section, {})[key] = value
        else:
            values["defaults"].append({f"override /{key}": value})
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(values))
    return folder


def run(command: list[str | Path], cwd: Path, expect: int = 0) -> str:
    """Run a command without this checkout on Python's path; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RANK")}
    done = subprocess.run(
        command, cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(python, elsewhere) -> Path:
    """The run folder of 20 steps with two processes."""
    run([python.with_name("txl"), "train", "experiment=mine", "gpus=2", "train.max_step=20", "run_dir=run"], elsewhere)
    return elsewhere / "run"


def test_txl_trains_from_any_folder_with_two_processes(trained):
    assert [record["step"] for record in metrics(trained)] == list(range(1, 21))


def test_the_run_folder_holds_the_code_that_ran_and_nothing_else_of_the_environment(trained, python):
    """What the ranks of a job import: the package with its configuration."""
    code = trained / "code"
    assert [path.name for path in code.iterdir()] == ["txl"]
    said = run(
        [python, "-c", f"import sys; sys.path[0] = {str(code)!r}; import txl.files as f; print(f.CONF)"], trained
    )
    assert said.strip() == str(code / "txl" / "conf")
    assert {path.name for path in (code / "txl" / "conf").iterdir()} >= {"train.yaml", "model", "data"}


def test_a_sites_own_settings_are_not_in_the_wheel(python):
    said = run([python, "-c", "import txl.files as f; print(f.CONF)"], python.parent)
    assert "site-packages" in said and not (Path(said.strip()) / "site").exists()


def test_the_record_of_a_run_names_the_version(trained):
    record = json.loads((trained / "environment.json").read_text())
    assert record["packages"]["txl"] == __version__ and record["git"] is None


def test_txl_evaluates_generates_and_reports(trained, python):
    txl = python.with_name("txl")
    run([txl, "evaluate", f"checkpoint={trained}", "hardware=cpu", "json=result.json"], trained)
    loss = json.loads((trained / "result.json").read_text())["test"]["loss"]
    assert loss == pytest.approx(metrics(trained, "test")[0]["loss"], rel=1e-3)  # of other batches
    said = run([txl, "generate", f"checkpoint={trained}", "hardware=cpu", "prompt=the cat", "max_tokens=5"], trained)
    assert "the cat" in said
    assert "finished" in run([txl, "report", str(trained)], trained)
    assert "20" in run([txl, "status", str(trained)], trained)


def test_python_scores_and_generates(trained, python):
    program = """
        import sys, json, txl
        loaded_early = "torch" in sys.modules
        model = txl.load("run", device="cpu")
        texts = ["the cat sat on the mat", "the dog sat on the mat"]
        one, many = model.score(texts[0]), model.score(texts)
        pieces = list(model.generate("the cat", max_tokens=5, seed=1, stream=True))
        whole = model.generate("the cat", max_tokens=5, seed=1)
        print(json.dumps([loaded_early, one.nats, [score.nats for score in many], "".join(pieces), str(whole)]))
    """
    said = run([python, "-c", textwrap.dedent(program)], trained.parent)
    loaded_early, one, many, streamed, whole = json.loads(said.splitlines()[-1])
    assert not loaded_early
    assert one > 0 and many[0] == pytest.approx(one, rel=1e-5) and len(many) == 2
    assert streamed == whole and whole.startswith("the cat")


def test_sweeps_as_a_job_array_are_in_the_wheel(python, elsewhere):
    """Hydra finds the plugin, which then asks for a cluster."""
    sweep = ["-m", "hydra/launcher=slurm_array", "experiment=mine", "seed=1,2"]
    said = run([python.with_name("txl"), "train", *sweep], elsewhere, expect=2)
    assert "hydra/launcher=slurm_array needs cluster=slurm" in said


def test_python_m_txl_is_the_same_command(python, elsewhere):
    assert run([python, "-m", "txl", "--version"], elsewhere) == f"txl {__version__}\n"
