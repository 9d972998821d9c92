"""The command line as a user meets it: help and mistakes answer at once, in one line, and leave nothing behind."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.entry_points import environment, run_code
from tests.support.mistakes import mistakes
from txl import __version__
from txl.cli.main import COMMANDS, main

PROJECT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess, float]:
    """The finished process, and its CPU seconds: others may be using the machine as well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR")}
    done = subprocess.run(
        [sys.executable, script if script == "-m" else str(PROJECT / script), *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["--version"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "txl", *arguments],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(PROJECT)),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    assert done.stderr == "" and done.returncode in (0, 128 + signal.SIGPIPE)  # argparse ignores it: 0


@mistakes("command_line")
def test_a_mistake_is_one_line_before_any_work(mistake, answer, tmp_path):
    done, seconds = run("train.py", *mistake.split(), "dry_run=true", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert answer in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert seconds < 2


@mistakes("file")
def test_a_mistake_in_a_file_names_the_file_and_the_key(mistake, answer, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(f"name: mine\n{mistake}\n")
    done, _ = run("train.py", "--config-dir", str(tmp_path), "model=mine", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 2
    assert answer in done.stderr and "mine.yaml" in done.stderr + "mine.yaml" * ("n_head" in answer)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_answers_at_once(script, tmp_path):
    done, seconds = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"txl {script.removesuffix('.py')}" in done.stdout
    assert seconds < 1
    assert list(tmp_path.iterdir()) == []


HEAVY = {"torch", "hydra", "omegaconf", "numpy", "yaml", "wandb", "submitit", "matplotlib", "tokenizers"}


@pytest.mark.parametrize("code", ["import txl", "from txl.cli.main import main; main(['train', '--help'])"])
def test_importing_txl_and_printing_help_loads_nothing_heavy(code, tmp_path):
    assert packages_that_load(code, tmp_path) & HEAVY == set()


def test_a_dry_run_loads_no_numbers(tmp_path):
    code = "from txl.cli.main import main; main(['train', 'hardware=h100', 'dry_run=true'])"
    assert packages_that_load(code, tmp_path) & HEAVY == {"hydra", "omegaconf", "yaml"}


def packages_that_load(code, tmp_path):
    said = run_code(f"import sys; {code}; print(*sys.modules)", tmp_path, timeout=60)
    return {module.partition(".")[0] for module in said.split()}


LONG = "x" * 200 + "/" + "y" * 200
LONG_MISTAKES = "status {}, cancel {}, report {}, import {} q, export {} q, replay {}, {}, report {} --a={}".split(", ")


@pytest.mark.parametrize("arguments", LONG_MISTAKES)
def test_an_error_line_is_never_longer_than_300_characters(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments.format(LONG, LONG).split())
    except SystemExit as end:  # argparse
        code = end.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and len(line) <= 300


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "generate", "benchmark"])
def test_help_fits_into_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= 80


def test_help_names_every_choice(tmp_path):
    text = run("train.py", "--help", cwd=tmp_path)[0].stdout
    for group in (PROJECT / "conf").iterdir():
        if group.is_dir() and group.name not in ("published", "site"):
            assert f"  {group.name}: " in text
            options = [file.stem for file in group.glob("*.yaml")]
            assert group.name == "experiment" or all(option in text for option in options), group.name


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path):
    done, _ = run("train.py", "hardware=cpu", "gpus=2", "dry_run=true", "train.batch_size=64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "overridden   train.batch_size 64, published 256\n" in done.stdout
    assert "191,950,298 parameters" in done.stdout and "runs/wt103-base/" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json_prints_nothing_else(tmp_path):
    done, _ = run("train.py", "hardware=dgxa100", "precision=fp16", "dry_run=true", "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["plan"]["world_size"] == 8 and plan["overridden"] == {} and round(plan["gpu_hours"], 1) == 9.7
    run("train.py", "hardware=dgxa100", "precision=fp16", "dry_run=true", "json=plan.json", cwd=tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text()) == plan


def test_a_sweep_tries_every_point_and_fails_if_one_does(tmp_path):
    sweep = ["-m", "hardware=cpu", "gpus=4", "dry_run=true"]
    done, _ = run("train.py", *sweep, "train.batch_size=250,256", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: train.batch_size=250") == 1
    assert done.stdout.count("run folder") == 1  # the second point, though the first one failed
    done, _ = run("train.py", *sweep, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("run folder") == 2
    done, _ = run("train.py", *sweep, "seed=1,x", cwd=tmp_path)
    assert done.returncode == 2 and "run folder" not in done.stdout  # no point composes before all do


def test_evaluate_needs_a_checkpoint(tmp_path):
    done, _ = run("evaluate.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: checkpoint has no value; give one: checkpoint=...\n"


def txl(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess, float]:
    """`txl arguments`, and its CPU seconds."""
    return run("-m", "txl", *arguments, cwd=cwd)


def test_txl_names_its_commands_and_its_version_at_once(tmp_path):
    done, seconds = txl("--help", cwd=tmp_path)
    assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert txl(cwd=tmp_path)[0].stdout == done.stdout
    assert txl("--version", cwd=tmp_path)[0].stdout == f"txl {__version__}\n"
    assert seconds < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_80_columns(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done, seconds = txl(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"txl {name}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed, hint", [("trian", "did you mean train?"), ("fly", "there are train, evaluate,")])
def test_an_unknown_command_is_one_line(typed, hint, tmp_path):
    done, _ = txl(typed, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {typed} is not a command of txl; {hint}") and done.stderr.count("\n") == 1


def write_data_set(folder: Path, name: str, file: str) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text(f"name: {name}\nvocab: char\nfile: {file}\n")


def test_the_users_own_files_are_found_beside_the_packages(tmp_path, monkeypatch):
    """--config-dir before ./conf before ~/.config/txl."""
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    asked = ["train", "data=mine", "model=small", "--cfg", "job"]
    assert "data=mine does not exist" in txl(*asked, cwd=tmp_path)[0].stderr
    write_data_set(home / "txl", "of-the-user", "a.txt")
    assert "name: of-the-user" in txl(*asked, cwd=tmp_path)[0].stdout
    write_data_set(tmp_path / "conf", "of-the-project", "b.txt")
    assert "name: of-the-project" in txl(*asked, cwd=tmp_path)[0].stdout
    write_data_set(tmp_path / "more", "of-the-flag", "c.txt")
    assert "name: of-the-flag" in txl(*asked, "--config-dir", "more", cwd=tmp_path)[0].stdout
