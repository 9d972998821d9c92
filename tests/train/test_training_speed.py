"""What makes a training step fast changes nothing and waits for nobody."""

import contextlib
import logging

import pytest
import torch

from tests.support.configurations import composed
from tests.support.models import build, model_config
from txl.bench.train_step import MadeUpCorpus
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.config.schema import BenchmarkConfig
from txl.errors import ConfigError
from txl.model.attention import choose_backend
from txl.model.transformer import TransformerXL
from txl.plan.run_plan import make_plan
from txl.system import devices
from txl.system.compiled_programs import count_compiled_programs
from txl.system.devices import should_compile
from txl.system.world import World
from txl.tracking.tracker import Tracker
from txl.train.trainer import Trainer

SMALL = ["hardware=cpu", "model=small", "data.vocab_size=60", "data.cutoffs=[20]", "model.n_layer=3"]
SMALL += ["model.d_model=16"]
SMALL += ["train.tgt_len=8", "train.mem_len=8", "valid.tgt_len=8", "train.batch_size=4", "debug=true"]


def trainer_on(device: str, *overrides: str) -> Trainer:
    config = composed("suite=train", *SMALL, *overrides, name="benchmark", kind=BenchmarkConfig)
    corpus = MadeUpCorpus(60, 4 * 8 * 10, seed=0)
    trainer = Trainer(config, make_plan(config, 60), corpus, World(), torch.device(device), Tracker())
    trainer.model.train()
    return trainer


def test_a_step_never_waits_for_the_device(monkeypatch):
    """A meta tensor has no values: whoever would read one to decide what to do next fails."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # which knows no such device
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    trainer = trainer_on("meta", "optimizer=lamb", "train.micro_batch_size=2", "model.dropatt=0.1")
    for _ in range(3):
        trainer.step()
    assert trainer.state.step == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.optimizer_step.grad_norm.item()


def test_marks_tell_the_parts_of_a_step():
    trainer, marks = trainer_on("cpu", "train.micro_batch_size=2"), []
    trainer.optimizer_step.on_part_done = marks.append
    trainer.step()
    assert marks == [*2 * ["input", "forward", "backward"], "optimizer"]


def losses(model: TransformerXL, geometry: Geometry, segments: int) -> tuple[list[torch.Tensor], dict]:
    mems, found = [], []
    for segment in range(segments):
        input = torch.randint(60, (2, geometry.tgt_len), generator=torch.Generator().manual_seed(segment))
        hidden, mems = model(input, mems, geometry)
        found.append(model.loss(hidden, input).sum())
    sum(found).backward()
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def pair(backend, **changes) -> list[TransformerXL]:
    """The same model twice, the second compiled."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        config = model_config(n_layer=3, tie_weight=False, **changes)
        models.append(TransformerXL(config, 60, [20], 16).double().train())
    models[1].compile_layers(backend)
    return models


@pytest.mark.parametrize("changes, count", [({}, 1), ({"value_residual": True}, 2)], ids=["plain", "value_residual"])
def test_all_layers_share_one_compiled_program_and_odd_segments_need_none(changes, count):
    """The first layer of a model with value residuals hands its values on, so it has a program of its own."""
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    plain, compiled = pair(backend, **changes)
    expected = losses(plain, Geometry(8, 16), 4)
    torch.testing.assert_close(losses(compiled, Geometry(8, 16), 4), expected, rtol=1e-12, atol=1e-12)
    assert len(programs) == count  # of two segments with a full memory and three layers
    compiled.eval()
    with torch.no_grad():
        compiled(torch.zeros(1, 5, dtype=torch.long), [], Geometry(5, 3))
    assert len(programs) == count


def test_layers_with_dropout_compile_on_a_cpu_and_those_without_memory_have_a_program_of_their_own():
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    model = TransformerXL(model_config(n_layer=3, dropout=0.1, dropatt=0.1), 60, [20], 16).train()
    model.compile_layers(backend)
    losses(model, Geometry(8, 0), 2)
    assert len(programs) == 1
    losses(model, Geometry(8, 8), 3)
    assert len(programs) == 2


@pytest.mark.parametrize("n_layer", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_layers_that_differ_have_a_program_each_and_none_is_left_out(n_layer):
    """Nine layers are more than torch compiles one function for unless it is told to."""
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    changes = dict(n_layer=n_layer, untie_r=True)
    model = TransformerXL(model_config(**changes), 60, [20], 16).double().train()
    expected = losses(model, Geometry(4, 4), 2)
    model.zero_grad()
    model.compile_layers(backend)
    torch.testing.assert_close(losses(model, Geometry(4, 4), 2), expected, rtol=1e-12, atol=1e-12)
    assert len(programs) == n_layer


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses_and_gradients():
    plain, compiled = pair("inductor")
    expected = losses(plain, Geometry(8, 8), 3)
    torch.testing.assert_close(losses(compiled, Geometry(8, 8), 3), expected, rtol=1e-9, atol=1e-10)


def test_a_second_training_of_a_process_compiles_as_the_first(monkeypatch):
    """Another micro-batch would be compiled for any size, and after eight kinds of inputs nothing at all."""
    compiled = []
    monkeypatch.setattr(
        TransformerXL, "compile_layers", lambda self, graphs: compiled.append(count_compiled_programs())
    )
    counters = pytest.importorskip("torch._dynamo.utils").counters
    for _ in range(2):
        trainer_on("cpu", "compile=true")
        counters["stats"]["unique_graphs"] += 1
    assert compiled == [0, 0]
    assert count_compiled_programs() == 1


def test_compiling_is_for_gpus_unless_asked_for_and_says_when_it_cannot(monkeypatch, caplog):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not should_compile("auto", cpu)
    assert not should_compile(False, gpu)
    assert not caplog.records
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not should_compile(True, cpu)
    assert "compile=true: no g++ or clang was found" in caplog.text
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert should_compile(True, cpu)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not should_compile("auto", gpu)
    assert "triton is not installed" in caplog.text


def test_the_fused_kernel_is_chosen_where_tensor_cores_serve_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    auto, eager, triton = AttentionBackend.auto, AttentionBackend.eager, AttentionBackend.triton
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    for capability, chosen in (((9, 0), triton), ((8, 0), triton), ((7, 0), eager)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_backend(auto, gpu, Arithmetic.bf16) is chosen
        assert choose_backend(auto, gpu, Arithmetic.fp32) is eager
        assert choose_backend(auto, cpu, Arithmetic.bf16) is eager
    assert choose_backend(AttentionBackend.sdpa, gpu, Arithmetic.bf16) is AttentionBackend.sdpa
    with pytest.raises(ConfigError, match="attention=triton needs a GPU; use attention=auto"):
        choose_backend(triton, cpu, Arithmetic.bf16)
    with pytest.raises(ConfigError, match="attention=sdpa has no deterministic gradient on a GPU; use attention=auto"):
        choose_backend(AttentionBackend.sdpa, gpu, Arithmetic.bf16, deterministic=True)
    assert choose_backend(AttentionBackend.sdpa, cpu, Arithmetic.bf16, deterministic=True) is AttentionBackend.sdpa
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_backend(auto, gpu, Arithmetic.bf16) is eager
    with pytest.raises(ConfigError, match="attention=triton needs triton, which is not installed"):
        choose_backend(triton, gpu, Arithmetic.bf16)


def test_memories_do_not_lie_where_graphs_will_write(monkeypatch):
    """A stand-in for torch's CUDA graphs tells where the programs wrote; every forward pass is announced to torch."""
    written, begun = [], []  # tensors: what is kept has an address of its own

    def backend(graph, inputs, options):
        assert options == {"triton.cudagraphs": True}

        def program(*arguments):
            results = graph(*arguments)
            written.extend(results)
            return results

        return program

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    found = []
    for graphs in (False, True):
        model, mems = build(n_layer=3).train(), []
        if graphs:
            model.compile_layers(backend, graphs=True)
        for ids in torch.arange(24).view(3, 2, 4):
            hidden, mems = model(ids, mems, Geometry(4, 4))
            hidden.sum().backward()
        found.append([hidden.detach(), *mems, *(p.grad for p in model.layers.parameters())])
    torch.testing.assert_close(*found)
    assert len(begun) == 2  # the first segment has no memory, so it runs without a program
    places = {x.untyped_storage().data_ptr() for x in written}
    assert places and not places & {mem.untyped_storage().data_ptr() for mem in mems}
