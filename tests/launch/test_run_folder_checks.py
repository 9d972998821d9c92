"""What is known before a run's first step: whether its folder may be used, and whether this process is a rank."""

import os
import subprocess
import sys

import pytest

from tests.support.configurations import composed
from tests.support.entry_points import PROJECT, command, environment, run
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.errors import ConfigError
from txl.launch.choose_checkpoint import check_not_begun
from txl.launch.prepare import check_run_folder
from txl.launch.start import shows_console
from txl.system.world import World


@pytest.fixture
def config():
    return composed("experiment=demo")


def test_a_folder_of_other_files_is_refused(config, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Docs")
    with pytest.raises(ConfigError, match=r"holds files that are no run's \(index.md\); name a new folder"):
        check_run_folder(config, tmp_path / "docs", submitted=False)


def test_a_file_is_no_run_folder(config, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        check_run_folder(config, tmp_path / "run", submitted=False)


def test_a_start_that_failed_before_its_first_step_does_not_block_its_name(config, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "metrics.jsonl").touch()
    check_run_folder(config, tmp_path, submitted=False)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="holds a run already; resume=auto continues it"):
        check_not_begun(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(config, tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device; free some room"):
        check_run_folder(config, tmp_path / "run", submitted=False)


@pytest.mark.parametrize("option", ["init_from", "resume"])
def test_a_dry_run_finds_a_wrong_checkpoint_and_writes_nothing(option, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    demo = ["experiment=demo", "hardware=cpu", f"data.cache={tmp_path}/cache", "dry_run=true"]
    with pytest.raises(ConfigError, match=f"{option}={tmp_path}/none does not exist"):
        train_here(*demo, f"{option}={tmp_path}/none")
    train_here(*demo)
    assert "vocabulary not built yet" in capsys.readouterr().out
    train_here("model=small", "data=text", f"data.file={tmp_path}/none.txt", *demo[1:])
    assert f"not ready    data.file={tmp_path}/none.txt:" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]


def test_a_failed_start_and_its_repetition_end_alike(tmp_path):
    overrides = [*write_corpus(tmp_path / "text"), *TINY_RUN, "train.max_step=6", f"run_dir={tmp_path}/run"]
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('FAIL'):\n"
        "    import txl.train.trainer as t\n"
        "    def broken(*_): raise RuntimeError('boom')\n"
        "    t.Trainer.__init__ = broken\n"
    )
    env = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{PROJECT}", FAIL="1")
    failed = subprocess.run(
        command("train.py", *overrides), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90
    )
    assert failed.returncode == 1 and "boom" in failed.stderr
    assert "End of training" in run("train.py", *overrides, cwd=tmp_path).stdout


@pytest.mark.parametrize("value", ["", "one"])
def test_a_rank_that_is_no_number_is_one_line(value, monkeypatch):
    monkeypatch.setenv("RANK", value)
    with pytest.raises(ConfigError, match="RANK='.*' in the environment is not a number; unset it"):
        World.from_environment()


def test_a_step_of_slurm_is_needed_for_srun(tmp_path):
    done = run("train.py", "experiment=demo", "cluster=srun", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: cluster=srun is for a task of a SLURM step") and done.stderr.count("\n") == 1


def test_only_rank_0_has_the_console(config, monkeypatch):
    assert shows_console(config)
    monkeypatch.setenv("SLURM_PROCID", "1")  # an interactive shell in a step: this process is alone
    assert shows_console(config)
    monkeypatch.setenv("RANK", "1")
    assert not shows_console(config)
    monkeypatch.setenv("RANK", "0")
    assert shows_console(config)


def test_torchrun_says_a_mistake_once(tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(PROJECT / "train.py")]
    overrides = ["experiment=demo", "gpus=2", "train.batch_size=3"]
    done = subprocess.run(
        [*start, *overrides], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size=3 must be a multiple") == 1, done.stderr
