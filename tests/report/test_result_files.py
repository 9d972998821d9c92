"""Results of evaluations and benchmarks (json=FILE) in a report."""

import json

import pytest

from tests.support.made_runs import MEASURED, write_run
from txl.report.__main__ import main

RESULT = {"loss": 3.0, "ppl": 20.0855, "tokens": 1000, "seconds": 2.0, "tokens_per_second": 500.0} | MEASURED
EVALUATION = {"checkpoint": "/runs/demo/abc-s1/checkpoints/best", "runtime": "cached", "precision": "fp32"}
EVALUATION |= {"world_size": 1, "metric": "ppl", "test": RESULT}
ROW = {"model": "base", "batch_size": 1, "tgt_len": 64, "mem_len": 640, "precision": "fp16", "runtime": "cached"}
ROW |= {"tokens_per_second": 5000.0, "latency_ms": {"mean": 12.0, "p50": 11.9, "p90": 12.5, "p95": 12.6, "p99": 13.0}}


def write(path, values):
    path.write_text(json.dumps(values))
    return str(path)


def test_evaluations_and_runs_stand_in_one_report_with_their_lengths(tmp_path, capsys):
    longer = EVALUATION | {"test": RESULT | {"mem_len": 640}}
    files = [write(tmp_path / "a.json", EVALUATION), write(tmp_path / "b.json", longer)]
    run = write_run(tmp_path / "runs" / "x-s1")
    (run / "summary.json").write_text(json.dumps({"train_seconds": 1.0, "evaluation": RESULT | {"split": "test"}}))
    (run / "evaluations" / "1234").mkdir(parents=True)
    write(run / "evaluations" / "1234" / "result.json", EVALUATION)
    assert main([str(tmp_path / "runs"), *files]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("abc-s1/best test 20.09") == 3 and "runs/x-s1 test 20.09" in said
    assert "ᵇ measured with tgt_len 64 mem_len 640 clamp_len -1 same_length false batch 16" in said


def test_evaluations_that_learnt_are_rows_of_their_own_with_their_settings(tmp_path, capsys):
    rms = {"dynamic": "rms", "rate": 0.3, "decay": 0.0, "segments": 1, "statistics": 40}
    cache = {"neural_cache": 4000, "theta": 0.015, "lambda": 0.3}
    files = []
    for i, settings in enumerate(({}, rms, cache, rms | cache)):
        result = RESULT | {"loss": 3.0 - i / 10, "ppl": 20.0 - i} | ({"adaptation": settings} if settings else {})
        files.append(write(tmp_path / f"{i}.json", EVALUATION | {"test": result}))
    assert main(files) == 0
    said = capsys.readouterr().out
    for row in ("20.00ᵃ  3.0000  -  ", "19.00ᵇ  2.9000  rms rate 0.3  ", "18.00ᶜ  2.8000  cache 4000  "):
        assert " ".join(row.split()) in " ".join(said.split())
    assert "rms rate 0.3, cache 4000" in said and max(map(len, said.splitlines())) <= 80
    learnt = "batch 16 dynamic rms rate 0.3 decay 0.0 segments 1 statistics 40 neural_cache 4000 theta 0.015 lambda 0.3"
    assert f"ᵈ measured with tgt_len 64 mem_len 64 clamp_len -1 same_length false {learnt}" in " ".join(said.split())
    assert main([*files, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["evaluations"]["rows"]
    assert [row.get("adaptation.neural_cache") for row in rows] == [None, None, 4000, 4000]
    assert rows[3]["adaptation.rate"] == 0.3 and rows[3]["adaptation.lambda"] == 0.3


def test_an_inference_benchmark_has_the_originals_columns_and_its_rows_beside(tmp_path, capsys):
    file = write(tmp_path / "i.json", {"machine": {"name": "NVIDIA A100"}, "rows": [ROW]})
    assert main([file, "--markdown"]) == 0
    said = capsys.readouterr().out
    assert "Throughput Avg (tok/s)" in said and "Latency 99% (ms)" in said
    assert "| ours, NVIDIA A100 | base | 1 | 64 | 640 | fp16 | cached | 5.00k | 12.0 | 12.5 | 12.6 | 13.0 |" in said
    assert "published, NVIDIA DGX A100 (1x A100 40GB)" in said and "TorchScript" in said


def test_the_committed_benchmarks_are_readable(capsys):
    files = [f"docs/results/{name}.json" for name in ("inference-cpu", "train-speed-cpu", "encoding")]
    assert main(files) == 0
    said = capsys.readouterr().out
    assert "training performance" in said and "inference performance" in said and "benchmark encoding.json" in said


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"rows": 3}', '{"metric": "ppl"}'])
def test_another_file_is_one_line(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    assert main([str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "is no result of txl evaluate or txl benchmark" in error and error.count("\n") == 1


def test_a_table_without_rows_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "a-s1")
    assert main([str(tmp_path), "--table", "inference"]) == 2
    assert "--table inference: these paths hold nothing for it" in capsys.readouterr().err
