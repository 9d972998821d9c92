"""The table of runs: what differs, mean ± sd over seeds, what became of each run."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.made_runs import line, usual_lines, write_run, write_sweep
from txl.config.config_hash import added_defaults
from txl.report.__main__ import main
from txl.report.compare import compare_runs
from txl.report.grouping import Selection
from txl.report.runs import read_run

PROJECT = Path(__file__).resolve().parents[2]


def report(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def table_of(*folders, **selection):
    return compare_runs([read_run(folder) for folder in folders], Selection(**selection))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_sweep_is_one_row_per_rate_and_the_best_is_named_without_a_hash(tmp_path, capsys):
    write_sweep(tmp_path)
    said = report(capsys, tmp_path)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "lr seed valid ppl test ppl step tokens time tok/s state"
    assert lines[2].startswith("0.01 3 seeds 22.4") and lines[2].endswith("300 300k 10:00 512 finished")
    assert [line.split()[0] for line in lines[2:5]] == ["0.01", "0.03", "0.003"]
    assert "best: optimizer.lr=0.01, valid ppl 22.4" in said and "next: optimizer.lr=0.03" in said
    assert "measured with tgt_len 64 mem_len 64 clamp_len -1 same_length false batch 16" in said
    assert "00002710" not in said and max(map(len, said.splitlines())) <= 120


def test_the_mean_and_the_sd_are_those_of_the_finished_seeds(tmp_path):
    write_run(tmp_path / "a-s1", usual_lines(0.0), 1)
    write_run(tmp_path / "a-s2", usual_lines(0.2), 2)
    write_run(tmp_path / "a-s3", usual_lines(9.0, steps=100, test=False), 3, finished=False)
    rows = table_of(*tmp_path.iterdir()).rows
    assert [row["seed"] for row in rows] == ["2 of 3", 3]
    assert rows[0]["valid_loss"].mean == pytest.approx(3.2) and rows[0]["valid_loss"].sd == pytest.approx(0.1414, 1e-3)
    assert rows[0]["state"] == "finished" and rows[1]["state"] == "stopped" and rows[1]["steps"] == 100


def test_a_run_that_diverged_is_no_part_of_a_mean_and_says_why(tmp_path, capsys):
    write_run(tmp_path / "a-s1", usual_lines(), 1)
    broken = [line("train", 10, 3.0), line("train", 20, None), line("valid", 20, None)]
    bad = write_run(tmp_path / "a-s2", broken, 2, finished=False)
    (bad / "train.log").write_text("error: the training diverged: its loss is not finite (since step 20)\n")
    said = report(capsys, tmp_path)
    assert "1 of 2" in said and "not finite" in said and "±" not in said
    assert "diverged: seed=2 at step 20: its loss is not finite (since step 20)" in said


def test_a_finished_run_with_an_infinite_loss_is_shown_and_never_averaged(tmp_path):
    write_run(tmp_path / "a-s1", usual_lines(), 1)
    write_run(tmp_path / "a-s2", [*usual_lines(test=False), line("test", 300, None)], 2)
    rows = table_of(*tmp_path.iterdir()).rows
    assert [row["test"] for row in rows][1] == "not finite" and rows[0]["seed"] == "1 of 2"


def test_failures_are_told_in_the_words_of_the_rank_that_failed(tmp_path, capsys):
    run = write_run(tmp_path / "a-s1", usual_lines(steps=100, test=False), finished=False)
    (run / "logs").mkdir()
    (run / "logs/rank_1.error").write_text("Traceback ...\nRuntimeError: the GPU fell\n  off the bus\n")
    said = report(capsys, tmp_path)
    assert "failed: seed=1 at step 100: off the bus" in said


def test_every_key_that_differs_is_a_column_and_keys_that_change_together_are_one(tmp_path, capsys):
    for name, layers in (("small", 4), ("base", 16)):
        write_run(tmp_path / name, model__name=name, model__n_layer=layers, model__d_model=32 * layers)
    said = report(capsys, tmp_path)
    assert said.splitlines()[0].split()[:2] == ["model", "seed"]
    assert "change together with model.name: model.d_model, model.n_layer" in said
    rows = rows_of(report(capsys, tmp_path, "--csv"))
    assert sorted(row["model.d_model"] for row in rows) == ["128", "512"]
    assert table_of(*tmp_path.iterdir()).best is not None


def test_runs_of_other_data_and_metrics_stand_side_by_side_without_a_best(tmp_path, capsys):
    write_run(tmp_path / "words", usual_lines())
    write_run(tmp_path / "letters", [line("valid", 5, 1.0, "bpc")], data__name="enwik8")
    said = report(capsys, tmp_path)
    assert "best:" not in said and "1.44" in said and "bpc" in said and "ppl" in said


def test_measurements_that_differ_get_a_letter_each(tmp_path, capsys):
    for i, length in enumerate((64, 128)):
        write_run(tmp_path / str(i), [line("valid", 5, 3.0, tgt_len=length)], train__tgt_len=length)
    said = report(capsys, tmp_path)
    assert "20.09ᵃ" in said and "20.09ᵇ" in said and "ᵇ measured with tgt_len 128" in said


def test_select_group_and_sort(tmp_path, capsys):
    write_sweep(tmp_path)
    rows = rows_of(report(capsys, tmp_path, "--where", "lr=1e-2", "--each", "--sort", "seed", "--csv"))
    assert [row["seed"] for row in rows] == ["1", "2", "3"]
    by_seed = rows_of(report(capsys, tmp_path, "--by", "seed", "--csv"))
    assert sorted((row["seed"], row["runs"], row["valid_n"]) for row in by_seed) == [
        (seed, "3 runs", "3") for seed in "123"
    ]
    assert "differ in more than the seed" in report(capsys, tmp_path, "--by", "model")
    assert report(capsys, tmp_path, "--by", "lr,seed") == report(capsys, tmp_path, "--by", "lr", "--by", "seed")
    by_rate = rows_of(report(capsys, tmp_path, "--sort", "optimizer.lr", "--csv"))
    assert [row["optimizer.lr"] for row in by_rate] == ["0.003", "0.01", "0.03"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--by", "optimizer.lrs"], "--by optimizer.lrs: no run has this key; did you mean optimizer.lr?"),
        (["--where", "optimizr.lr=1"], "--where optimizr.lr: no run has this key; did you mean optimizer.lr?"),
        (["--where", "optimizer.lr=7"], "no run has it; there are 0.003, 0.01, 0.03"),
        (["--where", "lr"], "is no condition; write key=value"),
        (["--where", "lr!=0.01"], "--where lr!=0.01 is no condition; write key=value"),
        (["--by", "nonsense"], "no run has this key; keys that differ: optimizer.lr, seed"),
        (["--sort", "vaild"], "--sort vaild: no run has this key; keys that differ: optimizer.lr, seed; columns are"),
        (["--by", "name"], None),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, arguments, said):
    write_sweep(tmp_path)
    assert main([str(tmp_path), *arguments]) == (0 if said is None else 2)
    error = capsys.readouterr().err
    assert error == "" if said is None else (said in error and error.count("\n") == 1 and len(error) <= 308)


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no metrics.jsonl"), ("nowhere", "does not exist")):
        assert main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_the_same_run_twice_is_told_and_not_averaged(tmp_path, capsys):
    for name in ("here", "there"):
        write_run(tmp_path / name / "x" / "abc-s1")
    (tmp_path / "link").symlink_to(tmp_path / "here" / "x")
    said = report(capsys, tmp_path / "here", tmp_path / "there", tmp_path / "link")
    assert "1 run has the name, configuration and seed of another one" in " ".join(said.split())
    assert "±" not in said and "best:" not in said
    assert len(rows_of(report(capsys, tmp_path / "here", tmp_path / "link", "--csv"))) == 1


def test_a_copy_of_a_run_leaves_the_means_of_the_others_and_is_never_the_best(tmp_path, capsys):
    write_sweep(tmp_path)
    write_run(tmp_path / "copy" / "x-s1", usual_lines(-0.5, 200, False), 1, False, optimizer__lr=0.01, name="sweep")
    for options in ([], ["--by", "lr"]):
        said = " ".join(report(capsys, tmp_path, *options).split())
        assert "0.01 - 3 seeds 22.48±0.25" in said and "best: optimizer.lr=0.01, valid ppl 22.48±0.25; next" in said
        # A path that is longer than a line is broken within a word.
        assert "lower already" not in said and f"{tmp_path}/copy/x-s1beside{tmp_path}/sweep" in said.replace(" ", "")
    tables = json.loads(report(capsys, tmp_path, "--where", "lr=0.01", "--table", "stability", "--json"))
    assert tables["stability"]["title"].endswith("3 seeds, ppl")


def test_runs_behind_links_are_found(tmp_path):
    write_run(tmp_path / "scratch" / "run")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "a-s1").symlink_to(tmp_path / "scratch" / "run")
    assert main([str(tmp_path / "runs")]) == 0


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_the_terminal_table_fits_and_names_what_it_leaves_out(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for i in range(3):
        write_run(tmp_path / "n" / str(i), optimizer__lr=0.1**i, model__init=f"{'x' * 40}{i}", train__clip=(0, 1, 0)[i])
    said = report(capsys, tmp_path)
    table, _, notes = said.partition("\n\n")[0].partition("measured")
    assert max(map(len, table.splitlines())) <= max(columns, 100 if columns == 140 else 0)
    assert ("not shown at" in said) == (columns < 140)


def test_long_texts_are_shortened_in_their_middle_and_no_column_is_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for i in range(3):
        write_run(tmp_path / "n" / str(i), model__init=f"{'x' * 40}{i}")
    head, _, *rows = report(capsys, tmp_path).splitlines()[:5]
    assert head.split() == "init seed valid ppl test ppl step tokens time tok/s state".split()
    assert all(row.split()[0].endswith(f"x{i}") and row.endswith("finished") for i, row in enumerate(sorted(rows)))


def test_every_format_holds_the_numbers(tmp_path, capsys):
    write_sweep(tmp_path)
    markdown, latex = report(capsys, tmp_path, "--markdown"), report(capsys, tmp_path, "--latex")
    assert "| **0.01** | **3 seeds** | **22.4" in markdown and "---:" in markdown
    assert r"\toprule" in latex and r"\textbf{0.01} & \textbf{3 seeds}" in latex and r"$\pm$" in latex
    best = json.loads(report(capsys, tmp_path, "--json"))["compare"]["rows"][0]
    exact = rows_of(report(capsys, tmp_path, "--csv"))[0]
    assert (
        best["optimizer.lr"] == 0.01 and best["valid_n"] == 3 and best["valid_loss_sd"] == float(exact["valid_loss_sd"])
    )


def test_csv_has_exactly_the_numbers_of_metrics_jsonl(tmp_path, capsys):
    write_sweep(tmp_path)
    for row in rows_of(report(capsys, tmp_path, "--each", "--csv")):
        lines = [json.loads(line) for line in (Path(row["folder"]) / "metrics.jsonl").read_text().splitlines()]
        losses = {kind: [line["loss"] for line in lines if line["kind"] == kind] for kind in ("valid", "test")}
        assert (float(row["valid_loss"]), float(row["test_loss"])) == (min(losses["valid"]), losses["test"][-1])
        assert int(row["steps"]) == lines[-1]["step"]


def test_names_of_runs_are_text_in_every_format(tmp_path, capsys):
    name = "<b>|\x1b[31m&_%`\n$"
    for i in range(2):
        write_run(tmp_path / str(i), name=f"{name}{i}")
    for format in ("--markdown", "--latex", "--csv", "--json"):
        assert "\x1b" not in report(capsys, tmp_path, format).replace('"<b>|\x1b', "")
    assert "\x1b" not in report(capsys, tmp_path)


def test_a_narrow_encoding_gets_the_table_all_the_same(tmp_path):
    write_sweep(tmp_path)
    command = [sys.executable, "-m", "txl.report", str(tmp_path)]
    env = {"PYTHONIOENCODING": "ascii", "PATH": "", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "+-" in done.stdout, done.stderr


def test_reporting_needs_no_torch_and_writes_nothing(tmp_path):
    write_sweep(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    code = (
        f"import sys; from txl.report.__main__ import main; main([{str(tmp_path)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_better_run_that_has_not_finished_is_named(tmp_path, capsys):
    write_sweep(tmp_path)
    write_run(tmp_path / "sweep" / "late-s1", usual_lines(-0.5, 200, False), finished=False, optimizer__lr=0.02)
    said = " ".join(report(capsys, tmp_path).split())
    assert "best: optimizer.lr=0.01" in said and "not finished, but lower already: optimizer.lr=0.02, " in said


def test_seeds_that_spread_more_than_the_settings_differ_are_called_noise(tmp_path, capsys):
    for rate, offset in ((0.1, 0.0), (0.2, 0.02)):
        for seed in (1, 2, 3):
            write_run(tmp_path / f"{rate}-s{seed}", usual_lines(offset + 0.1 * seed), seed, optimizer__lr=rate)
    assert "within the noise of the seeds (0.2 standard errors" in " ".join(report(capsys, tmp_path).split())


def test_spikes_and_rollbacks_are_told(tmp_path, capsys):
    lines = [line("train", step, 3.0, rollbacks=2, spike=step > 28) for step in range(1, 31)]
    write_run(tmp_path / "a-s1", lines)
    said = report(capsys, tmp_path)
    assert "seed=1: loss spike at step 29, and in 1 later records" in said
    assert "seed=1: went back to a checkpoint 2 times after it had diverged" in said


def test_an_option_that_is_newer_than_a_run_makes_no_difference(tmp_path):
    option, value = next(iter(added_defaults().items()))
    write_run(tmp_path / "old-s1", seed=1)
    write_run(tmp_path / "new-s2", seed=2, **{option.replace(".", "__"): value})
    (row,) = table_of(*tmp_path.iterdir()).rows
    assert row["seed"] == "2 seeds"


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    write_sweep(tmp_path)
    command = f"{sys.executable} -m txl.report {tmp_path} --each --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "{\n"


def test_a_run_that_has_not_begun_leaves_the_score_and_the_order_of_the_others(tmp_path, capsys):
    lines = {
        name: [line("valid", 100, loss, "bpc"), line("test", 100, loss, "bpc")] for name, loss in (("a", 3), ("b", 2))
    }
    for i, name in enumerate(("a", "b", "waits")):
        write_run(tmp_path / name, lines.get(name, []), 1, name in lines, optimizer__lr=i, data__metric="bpc")
    (tmp_path / "waits" / "metrics.jsonl").unlink()
    said = report(capsys, tmp_path)
    assert "valid bpc" in said and "score" not in said
    assert [row["optimizer.lr"] for row in rows_of(report(capsys, tmp_path, "--csv"))] == ["1", "0", "2"]


def test_options_and_paths_may_stand_in_any_order(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name / "x-s1", train__tgt_len=len(name))
    said = report(capsys, tmp_path / "a", "--csv", tmp_path / "b", "--sort", "test")
    assert len(rows_of(said)) == 2
