"""Evaluation and generation as SLURM jobs."""

import json
import subprocess

import pytest

from tests.support.entry_points import command
from tests.support.slurm_site import TWO_BY_TWO, job_of


@pytest.fixture(scope="module")
def trained(site):
    site.train("train.max_step=10", f"run_dir={site.folder}/trained")
    return site.folder / "trained"


def evaluate(site, *overrides, expect=0):
    done = subprocess.run(
        command("evaluate.py", *overrides),
        cwd=site.folder,
        env=site.environment(),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_evaluation_on_two_nodes_gives_the_number_of_one_process(site, trained):
    evaluate(site, f"checkpoint={trained}", "hardware=cpu", f"json={site.folder}/here.json")
    output = evaluate(site, f"checkpoint={trained}", "hardware=cpu", *TWO_BY_TWO, "cluster.wait=true")
    folder = trained / "evaluations"
    result = json.loads(next(folder.glob("*/result.json")).read_text())
    here = json.loads((site.folder / "here.json").read_text())
    assert result["world_size"] == 4 and job_of(output)
    assert result["test"]["loss"] == pytest.approx(here["test"]["loss"], rel=1e-6)
    assert "test loss" in output


def test_a_generation_is_one_task(site, trained):
    options = [f"checkpoint={trained}", "hardware=cpu", "task=generate", "prompt=the cat", "max_tokens=5"]
    output = evaluate(site, *options, "cluster=slurm", "cluster.minutes=5", "cluster.wait=true", "runtime=cached")
    assert "the cat" in output.partition("submitted")[2]


def test_a_checkpoint_that_is_not_there_is_found_out_before_the_queue(site):
    output = evaluate(site, f"checkpoint={site.folder}/nowhere", "hardware=cpu", "cluster=slurm", expect=2)
    assert output.startswith("error: checkpoint=") and "submitted" not in output
