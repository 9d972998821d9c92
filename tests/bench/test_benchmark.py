"""benchmark.py measures every combination once and keeps the table as JSON."""

import json

import pytest

from tests.support.configurations import composed
from tests.support.entry_points import run
from txl.bench.inference import format_inference_row
from txl.bench.train_step import configure_train_row, products_per_token
from txl.config.precision import Arithmetic
from txl.config.schema import BenchmarkConfig
from txl.plan.published import published_inference_rows, published_training_row
from txl.system.world import World

SMALL = ["hardware=cpu", "model=small", "data.vocab_size=60", "data.cutoffs=[20]", "model.n_layer=2"]
SMALL += ["evaluation.tgt_len=4", "evaluation.mem_len=8", "benchmark.segments=2"]


def test_inference_is_measured_for_every_combination(tmp_path):
    sizes, runtimes = "benchmark.batch_sizes=[1,3]", "benchmark.runtimes=[eager,cached]"
    combinations = ["suite=inference", sizes, runtimes, "benchmark.precisions=[fp32,bf16]"]
    done = run("benchmark.py", *SMALL, *combinations, "benchmark.json=out/table.json", cwd=tmp_path)
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    rows = table["rows"]
    assert table["machine"]["threads"] == 1
    found = {(row["batch_size"], row["runtime"], row["precision"]) for row in rows}
    assert len(rows) == len(found) == 8
    for row in rows:
        expected = row["batch_size"] * row["tgt_len"] * 1000 / row["latency_ms"]["mean"]
        assert abs(row["tokens_per_second"] - expected) < 1e-6 * expected
    assert "Throughput Avg (tok/s)" in done.stdout and "published" not in done.stdout  # no published row for a CPU


def test_without_a_list_of_precisions_a_benchmark_measures_that_of_the_training():
    assert composed("suite=train", name="benchmark", kind=BenchmarkConfig).benchmark.precisions == [Arithmetic.fp32]
    assert composed("suite=train", "precision=bf16", name="benchmark", kind=BenchmarkConfig).benchmark.precisions == [
        Arithmetic.bf16
    ]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("compile", "export")]


@pytest.mark.parametrize("runtime", ["torchscript", *SLOW])
def test_programs_are_measured_without_a_file_of_theirs(runtime, tmp_path):
    chosen = ["suite=inference", "benchmark.batch_sizes=[1,3]", f"benchmark.runtimes=[{runtime}]"]
    done = run("benchmark.py", *SMALL, *chosen, cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[4:5] == [runtime]]
    assert [row[0] for row in rows] == ["1", "3"]
    assert "recompile" not in done.stderr


def test_published_rows_stand_beside_the_nearest_machine():
    row = {"batch_size": 1, "precision": "bf16"}
    for name, machine, throughput in (("NVIDIA H200", "A100", 4163.7), ("Tesla T4", "T4", 3775.3)):
        rows = published_inference_rows("base", row, name)
        assert len(rows) == 2 and all(machine in r["machine"] for r in rows)
        assert rows[0]["Throughput Avg (tok/s)"] == throughput
        assert "pure Python" in format_inference_row(rows[0], rows[0]["implementation"])


def test_training_is_measured_with_its_parts_and_its_share_of_the_ceiling(tmp_path):
    sizes = [
        "benchmark.micro_batch_sizes=[1,2]",
        "train.tgt_len=8",
        "train.mem_len=8",
        "valid.tgt_len=8",
        "benchmark.steps=2",
    ]
    sizes += ["benchmark.precisions=[fp32,bf16]", "benchmark.profile=trace.json", "benchmark.json=table.json"]
    done = run("benchmark.py", "suite=train", *SMALL, *sizes, cwd=tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["micro_batch_size"], row["precision"]) for row in rows] == [
        (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < sum(row["part_seconds"].values()) < 1.5 * row["step_seconds"]
        assert abs(row["tokens_per_second"] * row["step_seconds"] - 8 * row["micro_batch_size"]) < 1e-6
        assert 0 < row["mfu"] < 1 and row["peak_memory_gb"] > 0 and row["plan_memory_gb"] > 0
        assert (row["compile"], row["programs"]) == (False, 0) and 0 < row["host_seconds"] <= row["step_seconds"]
    assert "MFU" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.slow  # the same claim for other data, or with one process, is in the fast tests
def test_training_with_two_processes_stands_beside_one(tmp_path):
    lengths = ["train.tgt_len=8", "train.mem_len=8", "valid.tgt_len=8", "benchmark.micro_batch_sizes=[2]"]
    measure = ["benchmark.processes=[1,2]", "benchmark.steps=2", "benchmark.json=table.json"]
    done = run("benchmark.py", "suite=train", *SMALL, *lengths, *measure, cwd=tmp_path)
    one, two = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["efficiency"] == 1
    assert abs(two["efficiency"] * 2 * one["tokens_per_second"] / two["tokens_per_second"] - 1) < 1e-9
    assert "2 process(es): " in done.stdout
    assert not list(tmp_path.glob("runs*"))  # a benchmark leaves no run folder


def test_the_published_training_row_stands_beside_the_nearest_machine():
    row = {"model": "base", "precision": "bf16", "processes": 8, "micro_batch_size": 32, "tokens_per_second": 899_780.0}
    for name, machine, speed in (("NVIDIA H200", "DGX A100", 449_890), ("Tesla V100-SXM2-16GB", "DGX-1", 258_648)):
        found = published_training_row(row, name)
        assert (found["machine"], found["tokens_per_second"]) == (machine, speed)
    assert published_training_row(row | {"processes": 3}, "NVIDIA H200") is None


def test_the_published_benchmark_keeps_its_learning_rate_curve_and_hardware_submits_it(tmp_path):
    chosen = ["suite=train", "experiment=trainbench_large", "hardware=dgx2", "nodes=8"]
    config = composed(*chosen, name="benchmark", kind=BenchmarkConfig)
    assert (config.scheduler.max_step, config.cluster.name) == (25_000, "slurm")
    measured = configure_train_row(config, Arithmetic.fp16, 4, World(0, 128, 0, 16))
    assert (measured.scheduler.max_step, measured.train.batch_size) == (25_000, 512)


def test_a_benchmark_of_the_modern_recipe_measures_the_steps_that_most_of_a_training_has():
    config = composed("suite=train", "recipe=modern", name="benchmark", kind=BenchmarkConfig)
    assert config.train.mem_from_step > 0 and config.train.multi_token_weight > 0
    train = configure_train_row(config, Arithmetic.fp32, 4, World(0, 1, 0, 1)).train
    assert (train.mem_from_step, train.multi_token_weight, train.multi_token_steps) == (0, 0, 0)


def test_the_work_of_a_token_is_what_the_design_counted():
    config = composed("model=base")
    products = products_per_token(config, 267_735, 256)
    assert abs(products / (68e6 + 15e6) - 1) < 0.1


def test_a_mistake_is_one_line(tmp_path):
    done = run("benchmark.py", "benchmark.batch_sizes=[0]", *SMALL, cwd=tmp_path, expect=2)
    assert "benchmark.batch_sizes=[0] must all be above 0" in done.stderr


def test_encoding_is_measured_and_done_once_for_eight_processes(tmp_path):
    arguments = ["hardware=cpu", "suite=encoding", "benchmark.megabytes=3", "benchmark.json=table.json"]
    done = run("benchmark.py", *arguments, cwd=tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    found = [(row["task"], row["processes"], row["encodings"]) for row in rows]
    assert found == [("encode", 1, 1), ("plain", 1, 0), ("open", 1, 0), ("encode", 8, 1)]
    assert rows[1]["equal"] and len({row["tokens"] for row in rows}) == 1  # the loop's ids are the encoder's
    for row in rows:
        assert 0 < row["seconds"] < row["process_seconds"] and row["cpu_seconds"] > 0
        assert 3 <= row["megabytes"] < 5 and 0 < row["peak_memory_gb"] < 0.3
    assert "times as fast as the plain loop" in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "table.json"]  # the text and its ids are gone


def test_a_text_that_does_not_fit_the_disk_is_not_begun(tmp_path):
    arguments = ["hardware=cpu", "suite=encoding", "benchmark.megabytes=1000000000"]
    done = run("benchmark.py", *arguments, cwd=tmp_path, expect=2)
    assert "benchmark.megabytes=1000000000 needs 6000000000 MB" in done.stderr
