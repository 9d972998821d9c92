"""A search whose trials are SLURM jobs: those that begin together are an array, hopeless ones are cancelled."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support.entry_points import PROJECT
from tests.support.slurm_site import HOLD, submitted, wait_for_step, wait_until
from tests.support.tiny_runs import metrics
from txl.cli.search import compose_run, split_space
from txl.launch.status import main as status
from txl.launch.study import Search, open_study
from txl.report.__main__ import main as report
from txl.system.slurm_jobs import SubmittedJob

RATES = "optimizer.lr=0.02,1e-07"


def fixed_options(site, *more):
    return [*site.shared, "cluster=slurm", "cluster.minutes=5", "scheduler=constant", *more]


def start_search(site, folder, *arguments, **how):
    typed = [sys.executable, "-m", "txl", "search", *arguments, RATES, "--folder", str(folder)]
    return subprocess.Popen(
        typed, cwd=PROJECT, env=site.environment(**how), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def jobs_of(folder, *numbers):
    return [submitted(folder / f"trial_{number}", 150) for number in numbers]


def test_trials_that_begin_together_are_one_array_and_end_with_the_search(site):
    folder = site.folder / "held"
    search = start_search(site, folder, *fixed_options(site, HOLD), "--trials", "2", "--parallel", "2")
    first, second = jobs_of(folder, 0, 1)
    assert first.removesuffix("_0") == second.removesuffix("_1")
    wait_until(lambda: site.cluster.job(second).get("JobState") == "PENDING", "the array to wait")
    search.send_signal(signal.SIGTERM)
    said, _ = search.communicate(timeout=120)
    assert search.returncode == 130 and "the same command continues the study and its trials" in said, said
    for job in (first, second):  # the controller forgets elements that never ran
        wait_until(lambda job=job: site.cluster.job(job).get("JobState") in (None, "CANCELLED"), f"the end of {job}")


@pytest.mark.slow
def test_a_killed_search_takes_its_jobs_over_and_finds_the_best(site, capsys):
    folder, short = site.folder / "study", ["train.max_step=40", "valid.interval=10"]
    typed = [*fixed_options(site, *short), "--trials", "3", "--parallel", "2"]
    search = start_search(site, folder, *typed, fault="slow:0.1")
    first, second = jobs_of(folder, 0, 1)
    wait_for_step(folder / "trial_0", 2)
    search.kill()
    search.wait()
    again = start_search(site, folder, *typed)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert jobs_of(folder, 0, 1) == [first, second] and "left alone" in said  # no second job
    study = json.loads((folder / "study.json").read_text())
    assert [trial["state"] for trial in study["trials"]] == ["complete"] * 3
    for trial in study["trials"]:
        run = folder / trial["folder"]
        assert trial["loss"] == json.loads((run / "summary.json").read_text())["best_valid_loss"]
        assert [record["step"] for record in metrics(run)] == list(range(1, 41))
    best = min(study["trials"], key=lambda trial: trial["loss"])
    assert f"best: trial {best['number']}, valid loss {best['loss']:.4f}" in said
    capsys.readouterr()
    assert report([str(folder), "--table", "study"]) == 0
    shown = capsys.readouterr().out
    assert "3 trials: 3 complete" in shown and "optimizer.lr  0.02, 1e-07" in shown and "100 %" in shown


@pytest.mark.slow
def test_a_hopeless_job_is_cancelled_and_says_pruned_everywhere(site, capsys, monkeypatch):
    folder = site.folder / "hopeless"
    fixed = fixed_options(site, "train.max_step=2000", "valid.interval=5")
    options, space = split_space([*fixed, RATES])
    study = open_study(Search(folder, options, space, 0, 1, compose_run, on_slurm=True))
    for loss in (0.1, 0.2, 0.3, 0.4):  # four trials that have ended, with losses that no training here reaches
        trial = study.ask()
        space[0].suggest(trial)
        for step in range(5, 2001, 5):
            trial.report(loss, step)
        study.tell(trial, loss)
    search = start_search(site, folder, *fixed, "--trials", "5", fault="slow:0.05")
    said, _ = search.communicate(timeout=240)
    assert search.returncode == 0 and "trial 4 pruned at step" in said, said
    run = folder / "trial_4"
    assert json.loads((folder / "study.json").read_text())["trials"][4]["state"] == "pruned"
    assert site.cluster.job(SubmittedJob.of(run).job)["JobState"] == "CANCELLED"
    assert list(run.glob("checkpoints/step_*"))  # it saved
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert status([str(run)]) == 0 and " PRUNED " in capsys.readouterr().out
    assert report([str(run), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["compare"]["rows"]
    assert row["state"] == "pruned" and row["why"].startswith("its validation was worse than the median")
