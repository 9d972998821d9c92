"""`txl search`: Optuna proposes, trainings are its trials; and what Hydra's own sweepers are told."""

import contextlib
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.support.entry_points import children_of, command, environment, is_running
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.cli.main import main
from txl.cli.search import compose_run, split_space
from txl.errors import ConfigError
from txl.launch.search import run_search
from txl.launch.study import Dimension, Search, begun_trials, best_trial, open_study
from txl.system.run_lock import held_lock


def search_command(tmp_path, *arguments):
    data = write_corpus(tmp_path / "text")
    short = ["train.max_step=8", "valid.interval=2", "scheduler=constant", f"runs={tmp_path}/runs"]
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.dropout=0.0,0.2"]
    folder = ["--folder", str(tmp_path / "study")]
    return [sys.executable, "-m", "txl", "search", *data, *TINY_RUN, *short, *space, *folder, *arguments]


def search_of(tmp_path, *overrides):
    """A search that has not begun."""
    return Search(tmp_path / "study", list(overrides), [Dimension("seed", choices=("1",))], 1, 1, compose_run)


def study_in(folder):
    """The study as it lies in its folder."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))))


def test_what_is_searched_is_written_as_hydra_writes_sweeps():
    fixed, space = split_space(
        [
            "seed=1",
            "optimizer.lr=tag(log,interval(1e-4,1e-2))",
            "model.dropout=interval(0,0.3)",
            "model.n_layer=int(interval(2,8))",
            "optimizer=adam,lamb",
            "train.roll=true,false",
            "train.tgt_len=range(8,33,8)",
        ]
    )
    assert fixed == ["seed=1"]
    assert space == [
        Dimension("optimizer.lr", 1e-4, 1e-2, log=True),
        Dimension("model.dropout", 0.0, 0.3),
        Dimension("model.n_layer", 2, 8, whole=True),
        Dimension("optimizer", choices=("adam", "lamb")),
        Dimension("train.roll", choices=("true", "false")),
        Dimension("train.tgt_len", choices=("8", "16", "24", "32")),
    ]


@pytest.mark.parametrize(
    "arguments, answer",
    [
        (["experiment=demo"], "nothing is searched: give a key several values"),
        (["experiment=demo", "seed=1,2", "run_dir=x"], "run_dir=x has no place in a search"),
        (["experiment=demo", "optimizer.lrr=0.1,0.2"], "optimizer.lrr"),
        (["experiment=demo", "optimizer.lr=tag(log,interval(0,1))"], "an interval of logarithms begins above 0"),
        (["experiment=demo", "train.batch_size=-1,2"], "train.batch_size=-1"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_trial(arguments, answer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and answer in said
    assert not list(tmp_path.iterdir())


def test_a_missing_optuna_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="needs Optuna 4 or newer: pip install"):
        run_search(search_of(tmp_path))


def test_a_study_of_other_settings_is_not_continued(tmp_path):
    open_study(search_of(tmp_path, "a=1"))
    with pytest.raises(ConfigError, match="holds a study of other settings; name another folder"):
        open_study(search_of(tmp_path, "a=2"))


def test_a_study_that_another_search_works_on_is_left_alone(tmp_path):
    open_study(search_of(tmp_path))
    with held_lock(tmp_path / "study"), pytest.raises(ConfigError, match="is in use by process .* --folder FOLDER"):
        run_search(search_of(tmp_path))


def test_a_folder_that_cannot_hold_a_study_is_one_line(tmp_path):
    (tmp_path / "study").write_text("a file")
    with pytest.raises(ConfigError, match="cannot hold the study: File exists; name another: --folder FOLDER"):
        open_study(search_of(tmp_path))
    (tmp_path / "study").unlink()
    open_study(search_of(tmp_path))
    (tmp_path / "study" / "study.log").write_text("damaged\n" * 3)
    with pytest.raises(ConfigError, match="study.log is damaged .*; begin again elsewhere: --folder FOLDER"):
        open_study(search_of(tmp_path))


def test_a_killed_search_goes_on_with_its_trials_and_finds_the_best(tmp_path):
    """Killed while a trial trains: the trial saves, and is neither lost nor begun again under another number."""
    process = subprocess.Popen(search_command(tmp_path, "--trials", "2"), env=environment())
    folder, deadline = tmp_path / "study", time.monotonic() + 120
    while not (folder / "trial_0" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=120)
    (begun,) = begun_trials(study_in(folder))
    done = subprocess.run(
        search_command(tmp_path, "--trials", "2", "--parallel", "2"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    study = study_in(folder)
    assert [trial.number for trial in study.trials] == [0, 1]
    assert study.trials[0].params == begun.params and not begun_trials(study)
    losses = {}
    for trial in study.trials:
        summary = json.loads((folder / f"trial_{trial.number}" / "summary.json").read_text())
        losses[trial.number] = summary["best_valid_loss"]
        assert trial.value == summary["best_valid_loss"] and max(trial.intermediate_values) == 8
    best = best_trial(study).number
    assert losses[best] == min(losses.values())
    assert f"best: trial {best}, valid loss {min(losses.values()):.4f}" in done.stdout
    assert done.stdout.rstrip().endswith(f"evaluate checkpoint={folder}/trial_{best}")
    record = json.loads((folder / "study.json").read_text())
    assert [trial["loss"] for trial in record["trials"]] == [losses[0], losses[1]]
    assert record["importances"].keys() == {"optimizer.lr", "model.dropout"} and "PED-ANOVA" in record["importances_by"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_no_trial_outlives_a_search_that_is_killed_at_its_start(delay, tmp_path):
    process = subprocess.Popen(
        search_command(tmp_path, "--trials", "1", "train.max_step=1000000", "valid.interval=100000"), env=environment()
    )
    deadline = time.monotonic() + 120
    while not children_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    (trial,) = children_of(process.pid)
    time.sleep(delay)
    process.kill()
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while is_running(trial) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(trial)


@pytest.mark.slow
def test_a_hopeless_trial_is_stopped_at_a_validation_says_so_everywhere_and_can_be_continued(tmp_path):
    """Learning rates far too high are worse than the median of four others at the same step."""
    from txl.launch.status import main as status
    from txl.report.__main__ import main as report

    data, folder = write_corpus(tmp_path / "text"), tmp_path / "study"
    fixed = [*data, *TINY_RUN, "train.max_step=300", "valid.interval=10", "scheduler=constant", f"runs={tmp_path}/runs"]
    search = Search(folder, fixed, [Dimension("optimizer.lr", choices=("0.02", "1e-07"))], 0, 1, compose_run)
    study = open_study(search)
    for loss in (1.0, 1.1, 1.2, 1.3):  # four trials that have ended, with losses that no training here reaches
        trial = study.ask()
        trial.suggest_categorical("optimizer.lr", ("0.02", "1e-07"))
        for step in range(10, 301, 10):
            trial.report(loss, step)
        study.tell(trial, loss)
    space = "optimizer.lr=0.02,1e-07"
    typed = [sys.executable, "-m", "txl", "search", *fixed, space, "--folder", str(folder), "--trials", "5"]
    done = subprocess.run(typed, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    # On a busy machine the search may look after the second validation.
    assert re.search(r"trial 4 pruned at step \d+0: its validation was worse than the median", done.stdout)
    assert study_in(folder).trials[4].state.name == "PRUNED"
    run = folder / "trial_4"
    assert not (run / "summary.json").exists() and list(run.glob("checkpoints/step_*"))
    assert "PRUNED" in shown_by(status, str(run))
    said = shown_by(report, str(run), "--json")
    assert json.loads(said)["compare"]["rows"][0]["state"] == "pruned"
    record = json.loads((folder / "study.json").read_text())
    assert record["trials"][4]["state"] == "pruned" and record["trials"][4]["last_loss"] > 1.3
    again = (folder / "trial_4.log").read_text().splitlines()[0]
    words = shlex.split(again.partition(" train ")[2])
    saved = len(metrics(run))
    subprocess.run([sys.executable, "-m", "txl", "train", *words], env=environment(), check=True, timeout=240)
    steps = [record["step"] for record in metrics(run)]
    assert 10 <= saved < 300 and steps == list(range(1, 301))
    assert json.loads(shown_by(report, str(run), "--json"))["compare"]["rows"][0]["state"] == "finished"


def shown_by(command, *arguments):
    """What a command prints that ends well."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert command(list(arguments)) == 0
    return out.getvalue()


SWEEPER = """
from pathlib import Path
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

class RecordingSweeper(BasicSweeper):
    def sweep_launch(self): pass
    def sweep(self, arguments):
        returns = super().sweep(arguments)
        Path("returned").write_text(" ".join(repr(job.return_value) for batch in returns for job in batch))
        return returns

node = {"_target_": "hydra_plugins.recording.sweeper.RecordingSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="recording", node=node)
"""


@pytest.mark.slow
def test_hydras_sweepers_are_told_the_best_validation_loss(tmp_path):
    plugin = tmp_path / "plugins" / "hydra_plugins" / "recording"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").touch()
    (plugin / "sweeper.py").write_text(SWEEPER)
    short = ["train.max_step=4", "valid.interval=2", "scheduler=constant", "seed=1,-1", "hydra/sweeper=recording"]
    arguments = [*write_corpus(tmp_path / "text"), *TINY_RUN, *short, "-m"]
    env = environment()
    env["PYTHONPATH"] = f"{env.get('PYTHONPATH', '')}:{tmp_path / 'plugins'}"
    subprocess.run(command("train.py", *arguments), cwd=tmp_path, env=env, timeout=120)
    (summary,) = tmp_path.glob("runs/*/*/summary.json")
    best, failed = (tmp_path / "returned").read_text().split()
    assert float(best) == json.loads(summary.read_text())["best_valid_loss"] and failed == "inf"
