"""The stability table of a seed sweep, and the published tables with ours in them."""

import json
import math

import pytest

from tests.support.configurations import composed
from tests.support.made_runs import line, write_run
from txl.config.geometry import valid_geometry
from txl.plan.published import PublishedTable, published_rows
from txl.report.__main__ import main
from txl.report.runs import read_run
from txl.report.stability import PUBLISHED_LENGTHS, seed_groups, stability_table

PUBLISHED = [
    row for row in published_rows(PublishedTable.stability) if (row["model"], row["recipe"]) == ("base", "single_node")
]


def stand_in(folder, seed, shift=0.0, data="wt103", changed=None, **more):
    """A made run of base whose perplexities are the published means, with `shift` published sds at step 20,000."""
    lines = []
    for row in PUBLISHED:
        away = 0.1 * (seed - 2.5) + (shift if row["step"] == 20000 and row["split"] == "valid" else 0.0)
        ppl = row["mean"] + away * row["sd"]
        lengths = dict(tgt_len=192, mem_len=192) if row["split"] == "valid" else {}
        lines.append(line(row["split"], row["step"], math.log(ppl), **lengths | (changed or {})))
    settings = dict(model__name="base", data__name=data, train__max_step=40000)
    return write_run(folder / f"abc-s{seed}", lines, seed, **settings | more)


def test_four_seeds_of_base_stand_beside_the_published_table_with_right_verdicts(tmp_path):
    runs = [read_run(stand_in(tmp_path / "base", seed, shift=-4.0)) for seed in (1, 2, 3, 4)]
    table = stability_table(runs)
    assert [row["step"] for row in table.rows] == [5000 * i for i in range(1, 9)] + ["test"]
    for row, published in zip(table.rows, PUBLISHED, strict=True):
        expected = published["mean"] - (4 * published["sd"] if row["step"] == 20000 else 0)
        assert row["mean"] == pytest.approx(expected) and row["published"].mean == published["mean"]
        assert row["sd"] == pytest.approx(0.1291 * published["sd"], rel=1e-3)
        assert row["min"] < row["median"] < row["max"] and row["runs"] == 4
        assert row["verdict"] == ("outside, lower" if row["step"] == 20000 else "inside")
    assert "8 of 9 rows inside the published mean ± 3 sd (16 seeds, DGX A100)" in table.notes
    assert "test measured with tgt_len 64 mem_len 64 clamp_len -1 same_length false batch 16" in table.notes


def test_the_command_shows_it_for_a_pure_seed_sweep_within_80_columns(tmp_path, capsys):
    for seed in (1, 2, 3, 4):
        stand_in(tmp_path / "base", seed)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "stability of base, 4 seeds, ppl" in said and "9 of 9 rows inside" in said
    assert any(" ".join(line.split()).startswith("5000 42.62 0.03526 42.58 42.66") for line in said.splitlines())
    assert max(map(len, said.splitlines())) <= 80
    for form in ([], ["--markdown"]):  # the title says what the columns do not, so the table has it also alone
        assert main([str(tmp_path), "--table", "stability", *form]) == 0
        assert "stability of base, 4 seeds, ppl" in capsys.readouterr().out
    assert main([str(tmp_path), "--table", "stability", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stability"]["rows"]
    assert rows[0]["published"] == 42.62 and rows[0]["published_sd"] == 0.27311


def test_a_verdict_on_other_lengths_than_the_published_ones_says_so(tmp_path):
    for name, changed, said in (("as_published", {}, False), ("short", {"mem_len": 64}, True)):
        runs = [read_run(stand_in(tmp_path / name, seed, changed=changed)) for seed in (1, 2)]
        notes = stability_table(runs).notes
        assert any("published validations have tgt_len 192 mem_len 192" in note for note in notes) == said
    for model, lengths in PUBLISHED_LENGTHS.items():
        geometry = valid_geometry(composed(f"model={model}", "data=wt103"))
        assert (geometry.tgt_len, geometry.mem_len) == lengths


def test_other_data_are_not_compared_with_what_was_published(tmp_path):
    runs = [read_run(stand_in(tmp_path / "base", seed, data="mine")) for seed in (1, 2)]
    table = stability_table(runs)
    assert not any(row.get("verdict") for row in table.rows)
    assert "nothing was published for model=base data=mine" in table.notes


def test_seeds_that_have_not_finished_are_left_out_and_counted(tmp_path):
    runs = [read_run(stand_in(tmp_path / "base", seed)) for seed in (1, 2, 3)]
    runs.append(read_run(write_run(tmp_path / "base/abc-s4", [line("valid", 5000, 9.0)], 4, finished=False)))
    table = stability_table(runs)
    assert {row["runs"] for row in table.rows} == {3}
    assert "1 of 4 seeds are not finished, and left out" in table.notes


def test_a_group_has_every_seed_once(tmp_path):
    for rate in (0.1, 0.2):
        for seed in (1, 2):
            write_run(tmp_path / f"{rate}-s{seed}", seed=seed, optimizer__lr=rate)
    write_run(tmp_path / "alone", seed=1, optimizer__lr=0.3)
    write_run(tmp_path / "copy", seed=1, optimizer__lr=0.1)
    groups = seed_groups([read_run(folder) for folder in tmp_path.iterdir()])
    assert sorted(len(group) for group in groups) == [2, 2]


def test_accuracy_and_speed_stand_beside_the_originals(tmp_path, capsys):
    for precision, minutes in (("fp32", 200), ("bf16", 80)):
        run = stand_in(tmp_path / precision, 1, precision__name=precision)
        plan = {"gpu": "NVIDIA A100-SXM4-40GB", "world_size": 8, "nodes": 1, "micro_batch_size": 32}
        (run / "plan.json").write_text(json.dumps(plan | {"grad_accum_steps": 1}))
        summary = {"train_seconds": 60 * minutes, "tokens_per_second": 1e7 / minutes}
        (run / "summary.json").write_text(json.dumps(summary))
    assert main([str(tmp_path), "--table", "accuracy", "--table", "performance", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    ours, published = tables["accuracy"]["rows"][:2]
    assert ours["accuracy mixed"] == pytest.approx(PUBLISHED[-1]["mean"] - 0.15 * PUBLISHED[-1]["sd"])
    assert (ours["minutes 32-bit"], ours["minutes mixed"], ours["speedup"]) == (200, 80, 2.5)
    assert published["accuracy 32-bit"] == 23.24 and published["speedup"] == pytest.approx(1.45, abs=0.005)
    assert {row["source"] for row in tables["accuracy"]["rows"][1:]} == {"published, DGX A100"}
    speed = {(row["source"], row["gpus"]): row for row in tables["performance"]["rows"]}
    assert speed["ours, NVIDIA A100-SXM4-40GB", 8]["speedup"] == pytest.approx(2.5)
    assert speed["published, DGX A100", 8]["scaling 32-bit"] == pytest.approx(7.37, abs=0.02)
