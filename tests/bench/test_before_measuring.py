"""What benchmark.py refuses or shows before it measures anything."""

import pytest
import torch

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.models import build
from txl.bench import inference
from txl.cli.benchmark import main
from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.config.schema import BenchmarkConfig, Runtime
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram, make_program
from txl.launch.start import Launcher

SMALL = ["hardware=cpu", "model=small", "data.vocab_size=60", "data.cutoffs=[20]", "model.n_layer=1"]
SMALL += ["evaluation.tgt_len=4", "evaluation.mem_len=8", "train.tgt_len=8", "train.mem_len=8", "valid.tgt_len=8"]


def benchmark(*overrides):
    return Launcher().start(composed(*SMALL, *overrides, name="benchmark", kind=BenchmarkConfig))


def test_without_arguments_it_says_what_can_be_measured(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: say what to measure") and "suite=inference" in said and said.count("\n") == 1


@pytest.mark.parametrize("suite", ["inference", "train"])
def test_a_precision_that_cannot_be_computed_is_found_before_the_first_is_measured(suite, capsys, tmp_path):
    table = tmp_path / "table.json"
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU"):
        benchmark(f"suite={suite}", "benchmark.precisions=[fp32,fp16]", f"benchmark.json={table}", "benchmark.steps=1")
    assert "fp32" not in capsys.readouterr().out and not table.exists()


@pytest.mark.parametrize(("suite", "shown"), [("inference", "runtimes     eager cached"), ("encoding", "540 MB")])
def test_a_dry_run_measures_nothing(suite, shown, capsys, monkeypatch):
    monkeypatch.setattr(inference, "measure_inference", None)
    assert benchmark(f"suite={suite}", "dry_run=true") == 0
    assert shown in capsys.readouterr().out


def test_a_dry_run_of_training_steps_prints_the_plan(capsys):
    assert benchmark("suite=train", "dry_run=true") == 0 and "batch" in capsys.readouterr().out


@pytest.mark.parametrize("suite", ["inference", "train"])
def test_a_vocabulary_of_unknown_size_is_refused_with_a_remedy_that_helps(suite):
    demo = ["experiment=demo", f"suite={suite}"]
    with pytest.raises(ConfigError, match="data=stdlib does not say how large .* give data.vocab_size=N"):
        composed(*demo, name="benchmark", kind=BenchmarkConfig)
    composed(*demo, "data.vocab_size=96", name="benchmark", kind=BenchmarkConfig)


@pytest.mark.parametrize("suite", ["inference", "encoding"])
def test_what_measures_this_machine_is_not_submitted(suite):
    slurm = ["hardware=dgx2", "cluster=slurm", f"suite={suite}"]
    with pytest.raises(ConfigError, match=f"cluster=slurm submits jobs, and suite={suite} measures the machine"):
        composed(*slurm, name="benchmark", kind=BenchmarkConfig)


@pytest.mark.parametrize("runtime", ["cached", "graphs", "compile", "torchscript", "export"])
def test_a_runtime_that_cannot_run_the_model_is_found_before_the_others_are_measured(runtime):
    shaw = ["suite=inference", "model.positions=absolute", f"benchmark.runtimes=[eager,{runtime}]"]
    with pytest.raises(ConfigError, match=f"benchmark.runtimes={runtime} needs positions whose keys can be cached"):
        benchmark(*shaw)


@pytest.mark.parametrize("positions", [scheme for scheme in Positions if scheme.facts.caches_keys])
def test_every_positional_scheme_that_can_be_cached_can_be_traced(positions, tmp_path):
    model, geometry = build(positions=positions), Geometry(6, 8)
    program = FixedShapeProgram(
        step := CachedStep(model, geometry), make_program(step, Runtime.torchscript, 2, str(tmp_path / "step.ts"))
    )
    ids = torch.arange(36).view(2, 18)
    expected, found = [], []
    mems, state = [], []
    for begin in range(0, 12, 6):
        input, target = ids[:, begin : begin + 6], ids[:, begin + 1 : begin + 7]
        with torch.no_grad():
            hidden, mems = model(input, mems, geometry)
            expected.append(model.loss(hidden, target))
        loss, state = program(input, target, state)
        found.append(loss)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected))


SWEEPS = {
    "evaluate.py": ("checkpoint=none split=valid,test", 2, "checkpoint=none does not exist"),
    "benchmark.py": ("suite=encoding seed=1,2 dry_run=true", 0, "would encode 540 MB"),
}


@pytest.mark.parametrize("script", SWEEPS)
def test_a_sweep_of_what_has_no_run_folder_leaves_no_file(script, tmp_path):
    overrides, code, shown = SWEEPS[script]
    done = run(script, "-m", *overrides.split(), "hardware=cpu", cwd=tmp_path, expect=code)
    assert (done.stdout + done.stderr).count(shown) == 2 and list(tmp_path.iterdir()) == []
