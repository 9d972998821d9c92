"""A search in the report: how much each key decides, and what became of its trials, without Optuna."""

import builtins
import json
import shutil

import pytest

from tests.support.made_runs import write_study
from txl.report.__main__ import main


def rows_of(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_study_says_what_was_searched_what_is_best_and_which_key_decides(tmp_path, capsys):
    study = write_study(tmp_path / "search-1")
    assert main([str(study)]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "trial dropout lr" in said and "optimizer.lr 0.0001 to 0.1, by logarithm 0.01 90 %" in said
    assert "model.dropout 0.0, 0.2 0.2 10 %" in said and "5 trials: 3 complete, 1 pruned, 1 failed" in said
    assert f"best:trial1,validloss3.1000,{study}/trial_1" in "".join(out.split())  # a long path takes several lines
    assert "over 3 complete trials; of so few trials it says little" in said


def test_trials_are_rows_with_their_number_and_state(tmp_path, capsys):
    rows = rows_of(capsys, write_study(tmp_path / "search-1"))["compare"]["rows"]
    assert [row["trial"] for row in rows] == [1, 0, 2, 3, 4]
    assert [row["state"] for row in rows] == ["finished"] * 3 + ["pruned", "stopped"] and rows[3]["why"] == "hopeless"


def test_watching_a_search_counts_its_pruned_trials(tmp_path, capsys):
    assert main([str(write_study(tmp_path / "search-1")), "--watch", "--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "1 stopped, 1 pruned, 3 finished" in said and "1 pruned: hopeless" in said


def test_every_study_below_a_folder_has_its_table_and_other_runs_none(tmp_path, capsys):
    for name in ("search-1", "search-2"):
        write_study(tmp_path / name)
    assert {"study", "study_2"} <= rows_of(capsys, tmp_path).keys()
    assert (
        rows_of(capsys, tmp_path, "--where", "optimizer.lr=0.01")["study"]["notes"][0]
        == "2 trials: 1 complete, 1 failed"
    )
    shutil.rmtree(tmp_path / "search-2")
    (tmp_path / "search-1" / "study.json").write_text("{")
    assert "study" not in rows_of(capsys, tmp_path)
    assert main([str(tmp_path), "--table", "study"]) == 2
    assert capsys.readouterr().err == "error: --table study: these paths hold nothing for it\n"


@pytest.mark.parametrize("part", ["space", "trials", "importances", "importances_by"])
def test_a_damaged_study_is_left_out(tmp_path, capsys, part):
    file = write_study(tmp_path / "search-1") / "study.json"
    for wrong in (None, 3, [3], [{"key": 1}], {"a": "b"}):
        file.write_text(json.dumps(json.loads(file.read_text()) | {part: wrong}))
        assert "compare" in rows_of(capsys, tmp_path)


def test_the_report_of_a_study_needs_no_optuna(tmp_path, monkeypatch):
    plain = builtins.__import__

    def checked(name, *rest):
        assert not name.startswith("optuna")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", checked)
    assert main([str(write_study(tmp_path / "search-1")), "--html", str(tmp_path / "x.html")]) == 0
