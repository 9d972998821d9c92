"""Every point of a sweep has a run folder of its own."""

import re

import pytest

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.cli.sweeps import point_label, swept_keys, with_own_folder, with_wandb_names
from txl.config.config_hash import config_hash
from txl.errors import ConfigError


def test_points_that_compute_the_same_have_folders_of_their_own(tmp_path):
    done = run("train.py", "-m", "hardware=dgxa100", "nodes=1,2,4", "data=stdlib", "dry_run=true", cwd=tmp_path)
    folders = re.findall(r"^run folder +(\S+)", done.stdout, re.MULTILINE)
    assert len(set(folders)) == 3 and all(re.search(r"-nodes=[124]-s1111$", folder) for folder in folders)
    assert not list(tmp_path.rglob("multirun.yaml"))


def test_a_sweep_over_kernels_trains_every_point(tmp_path):
    data = write_corpus(tmp_path / "text")
    swept = ["attention=eager,sdpa", "seed=1"]
    done = run("train.py", "-m", *data, *TINY_RUN, "train.max_step=6", *swept, f"runs={tmp_path}", cwd=tmp_path)
    assert len(list(tmp_path.glob("text-small/*/summary.json"))) == 2
    assert [line for line in done.stdout.splitlines() if line.startswith(("Launching", "point", "End of", "\t#"))] == [
        "Launching 2 jobs locally", "point 1: attention=eager", "End of training", "point 2: attention=sdpa",
        "End of training",
    ]  # fmt: skip
    assert done.stdout.count(" | loss ") == 2 * 6 and done.stdout.count("Training throughput:") == 2


def test_one_folder_for_all_points_is_refused_before_the_first(tmp_path):
    done = run("train.py", "-m", "experiment=demo", "seed=1,2", "run_dir=here", cwd=tmp_path, expect=2)
    assert "run_dir=here would be the folder of every point of this sweep; leave it out" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_label_names_what_the_hash_leaves_out():
    swept = swept_keys(["nodes=1,2", "seed=range(1,3)", "optimizer.lr=0.1,0.2", "data.path=a,b", "gpus=2"])
    assert swept == {"nodes", "seed", "optimizer.lr", "data.path"}
    assert (
        point_label(["nodes=2", "seed=1", "optimizer.lr=0.1", "data.path=/x/b", "gpus=2"], swept) == "nodes=2-path=_x_b"
    )


def test_a_point_without_a_label_has_the_usual_folder():
    config = composed("experiment=demo")
    assert with_own_folder(config, "").run_dir is None
    assert with_own_folder(config, "nodes=2").run_dir == f"runs/demo/{config_hash(config)}-nodes=2-s{config.seed}"


def test_a_folder_that_names_its_point_is_kept():
    assert swept_keys(["seed=1,2", "run_dir=x/${seed}"]) == {"seed"}
    with pytest.raises(ConfigError, match="would be the folder of every point"):
        swept_keys(["seed=1,2", "run_dir=x"])


def test_wandb_groups_a_sweep_and_names_its_points_by_what_differs():
    sweep = ["experiment=demo", "optimizer.lr=0.1,0.2", "seed=range(1,3)", "tracking=wandb"]
    swept, point = swept_keys(sweep), ["experiment=demo", "optimizer.lr=0.1", "seed=2", "tracking=wandb"]
    config = composed("experiment=demo", "tracking=wandb")
    named = with_wandb_names(config, point, swept, sweep).tracking.wandb
    assert (named.group, named.name) == ("demo optimizer.lr=0.1,0.2 seed=range(1,3)", "lr=0.1 seed=2")
    assert config_hash(with_wandb_names(config, point, swept, sweep)) == config_hash(config)
    chosen = composed("experiment=demo", "tracking=wandb", "tracking.wandb.group=mine", "tracking.wandb.name=a")
    assert with_wandb_names(chosen, point, swept, sweep) == chosen
    untracked = composed("experiment=demo")
    assert with_wandb_names(untracked, point, swept, sweep) == untracked
