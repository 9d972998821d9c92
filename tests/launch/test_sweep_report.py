"""From a sweep under SLURM to a decision: its end tells which setting is best, and so does one command later."""

import json

import pytest

from txl.report.__main__ import main as report

SWEEP = ["-m", "hydra/launcher=slurm_array", "cluster=slurm", "cluster.minutes=5", "cluster.wait=true"]


@pytest.mark.slow
def test_a_sweep_under_slurm_ends_with_its_table_and_one_command_shows_it_again(site, capsys):
    runs = site.folder / "decision"
    points = ["optimizer.lr=0.001,0.1", "seed=1,2", "train.max_step=8", "valid.interval=4"]
    said = site.train(*SWEEP, *points, f"runs={runs}")
    assert f"watch: txl report {runs}/text-small --watch" in said
    table = said[said.rindex("seed ") :]
    assert table.count("2 seeds") == 2 and "best: optimizer.lr=" in table and "Next:" in table
    best = table.partition("best: optimizer.lr=")[2].partition(",")[0]
    capsys.readouterr()
    assert report([str(runs), "--html", str(site.folder / "decision.html"), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    first, second = tables["compare"]["rows"]
    assert f"{first['optimizer.lr']:g}" == best and first["valid"] < second["valid"] and first["valid_n"] == 2
    losses = {run.parent.name: json.loads(run.read_text())["best_valid_loss"] for run in runs.glob("*/*/summary.json")}
    of_best = [losses[folder.rpartition("/")[2]] for folder in first["folder"].split()]
    assert len(losses) == 4 and first["valid_loss"] == sum(of_best) / 2 and min(losses.values()) in of_best
    assert "best: optimizer.lr=" in (site.folder / "decision.html").read_text()
