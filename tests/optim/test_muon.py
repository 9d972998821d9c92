"""Muon for the matrices of the layers, AdamW for the rest: torch's own steps, resumed and in several processes."""

import copy
import math

import pytest
import torch

from tests.support.bitwise import assert_bitwise_equal
from tests.support.entry_points import run
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.models import model_config
from tests.support.optimizers import optimizer_config
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.config.optimizer import OptimizerConfig
from txl.model.transformer import TransformerXL
from txl.optim import batched_muon
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients

ADAMW = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
QKV, INNER = "layers.0.attention.qkv.weight", "layers.0.feed_forward.inner.weight"


def muon_config(**changes) -> OptimizerConfig:
    return optimizer_config("muon", **dict(weight_decay=0.1, momentum=0.95) | changes)


def torch_muon(params, **changes) -> torch.optim.Muon:
    """Torch's own with the same options."""
    options = dict(lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return torch.optim.Muon(params, **options | changes)


def parameters(**shapes) -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {name.replace("__", "."): torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def step_with_equal_gradients(pairs: list[tuple[torch.Tensor, torch.Tensor]], *optimizers, steps: int = 3) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        for ours, theirs in pairs:
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()


def assert_moved_as(mine, expected, start) -> None:
    """Equal where the CPU multiplies bf16, as torch's Muon does; elsewhere the products are more exact than torch's."""
    if batched_muon.cpu_multiplies_bf16():
        assert torch.equal(mine, expected)
    else:
        assert (mine - expected).norm() < 0.02 * (expected - start).norm()


@pytest.mark.parametrize("multiplies_bf16", [None, False], ids=["this CPU", "a CPU without bf16 products"])
def test_steps_are_those_of_torch(multiplies_bf16, monkeypatch):
    if multiplies_bf16 is not None:
        monkeypatch.setattr(batched_muon, "cpu_multiplies_bf16", lambda: multiplies_bf16)
    ours = {INNER: parameters(w=(6, 4))["w"], "layers.0.norm.bias": parameters(b=(4,))["b"]}
    theirs, start = copy.deepcopy(list(ours.values())), copy.deepcopy(list(ours.values()))
    both = build_optimizer(muon_config(), ours.items())
    pairs = list(zip(ours.values(), theirs, strict=True))
    step_with_equal_gradients(pairs, both, torch_muon([theirs[0]]), torch.optim.AdamW([theirs[1]], **ADAMW, fused=True))
    for (mine, expected), before in zip(pairs, start, strict=True):
        assert_moved_as(mine, expected, before)


def test_each_of_q_k_and_v_is_orthogonalised_on_its_own():
    qkv, bias = parameters(w=(12, 5))["w"], parameters(b=(4,))["b"]
    parts = [torch.nn.Parameter(part.clone()) for part in qkv.detach().chunk(3)]
    whole, start = copy.deepcopy(qkv), copy.deepcopy(qkv)
    optimizer = build_optimizer(muon_config(), [(QKV, qkv), ("softmax.biases.0", bias)])
    apart, together = torch_muon(parts), torch_muon([whole])
    for step in range(3):
        torch.manual_seed(step)
        qkv.grad = torch.randn_like(qkv)
        whole.grad = qkv.grad.clone()
        for part, grad in zip(parts, qkv.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        for one in (optimizer, apart, together):
            one.step()
    assert_moved_as(qkv, torch.cat([part.detach() for part in parts]), start)
    assert not torch.allclose(qkv, whole)


def test_matrices_that_are_updated_together_move_as_torch_moves_them():
    """Fifty steps. They differ by the rounding of bf16 products at most."""
    shapes = [(24, 8)] * 3 + [(8, 8)] * 2 + [(8, 32)]
    ours = {
        f"layers.{i}.output.weight": p
        for i, p in enumerate(parameters(**{f"w{i}": s for i, s in enumerate(shapes)}).values())
    }
    theirs, start = copy.deepcopy(list(ours.values())), copy.deepcopy(list(ours.values()))
    both = build_optimizer(muon_config(), [*ours.items(), ("softmax.biases.0", parameters(b=(3,))["b"])])
    other = torch_muon(theirs)
    step_with_equal_gradients(list(zip(ours.values(), theirs, strict=True)), both, other, steps=50)
    for mine, expected, before in zip(ours.values(), theirs, start, strict=True):
        assert (mine - expected).norm() < 0.02 * (expected - before).norm()
    mine, expected = both.muon.state_dict(), other.state_dict()
    assert mine["state"].keys() == expected["state"].keys()
    for i, state in expected["state"].items():  # torch's own can go on with it
        torch.testing.assert_close(mine["state"][i], state, rtol=1e-5, atol=1e-6)


def test_matrices_of_layers_get_muon_and_everything_else_adamw():
    model = TransformerXL(model_config(div_val=2), 50, [20], 16)
    optimizer = build_optimizer(muon_config(), model.named_parameters())
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, others = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
    kinds = "attention.qkv attention.output attention.position feed_forward.inner feed_forward.outer".split()
    assert sorted(matrices) == sorted(f"layers.{i}.{kind}.weight" for i in (0, 1) for kind in kinds)
    assert set(matrices) | set(others) == set(names.values()) and not set(matrices) & set(others)
    assert {"embedding.tables.0", "embedding.projections.0", "softmax.cluster_weight", "positions.content_bias"} < set(
        others
    )


def test_lr_scale_sets_the_rate_of_adamw_apart():
    config = muon_config(weight_decay=0.0, lr_scale=["embedding.*=0.25", "softmax.*=0.5", "*.bias=0"])
    named = parameters(layers__0__output__weight=(4, 4), layers__0__norm__bias=(4,), embedding__tables__0=(9, 4))
    named |= parameters(softmax__weights__0=(9, 4))
    optimizer = build_optimizer(config, named.items())
    before = {name: p.detach().clone() for name, p in named.items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    for p in named.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in named.items()}
    assert moved["embedding.tables.0"] == pytest.approx(0.0025, rel=1e-3)  # AdamW's first step has the size of its rate
    assert moved["softmax.weights.0"] == pytest.approx(0.005, rel=1e-3)
    assert moved["layers.0.norm.bias"] == 0 and moved["layers.0.output.weight"] > 0


def test_an_update_whose_gradients_overflowed_is_skipped_and_clipping_is_torchs():
    named = parameters(layers__0__output__weight=(4, 4), softmax__biases__0=(3,))
    optimizer, scaler = build_optimizer(muon_config(), named.items()), torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflow in (False, True):
        before = copy.deepcopy([[p.data for p in named.values()], optimizer.state_dict()])
        scaler.scale(sum((p * torch.randn_like(p)).sum() for p in named.values())).backward()
        if overflow:
            named["softmax.biases.0"].grad[0] = math.inf
        scaler.unscale_(optimizer)
        expected = torch.nn.utils.get_total_norm([p.grad.clone() for p in named.values()])
        norm = clip_gradients(optimizer, list(named.values()), 0.25)
        if not overflow:
            torch.testing.assert_close(norm, expected)
            after = torch.nn.utils.get_total_norm([p.grad for p in named.values()])
            assert after.item() == pytest.approx(0.25, rel=1e-4)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert all(p.grad is None for p in named.values())
        same = torch.equal(before[0][0], named["layers.0.output.weight"].data)
        assert same is overflow
    assert_bitwise_equal(optimizer.state_dict(), before[1])
    assert scaler.get_scale() == 4.0


MUON = ["optimizer=muon", "optimizer.lr=0.01", 'optimizer.lr_scale=["embedding.*=0.5","*.bias=2"]']


@pytest.mark.parametrize("together", [False, True])
def test_a_resumed_run_continues_bitwise(together, tmp_path, monkeypatch):
    monkeypatch.setattr(batched_muon, "steps_together", lambda params: together)
    shared = [*write_corpus(tmp_path / "text"), *TINY_RUN, *MUON, "scheduler.max_step=12", "train.roll=true"]
    train_here(*shared, "train.max_step=12", f"run_dir={tmp_path}/straight")
    train_here(*shared, "train.max_step=5", f"run_dir={tmp_path}/broken")
    train_here(*shared, "train.max_step=12", f"run_dir={tmp_path}/broken", "resume=auto")
    folders = [tmp_path / name / "checkpoints/step_12" for name in ("straight", "broken")]
    for file in ("model.pt", "optimizer.pt"):
        assert_bitwise_equal(*(read_checkpoint_file(folder, file) for folder in folders))


def test_two_processes_equal_one_with_the_modern_recipe(tmp_path):
    recipe = ["recipe=modern", "train.shuffle_len=40", "scheduler.warmup_step=2"]
    shared = [*write_corpus(tmp_path / "text"), *TINY_RUN, *recipe, "train.max_step=10", "precision=fp64"]
    shared += ["model.dropout=0", "train.micro_batch_size=2"]
    train_here(*shared, f"run_dir={tmp_path}/one")
    run("train.py", *shared, f"run_dir={tmp_path}/two", "gpus=2", cwd=tmp_path)
    one, two = ([record["loss"] for record in metrics(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-9) and len(one) == 10 and one[-1] < one[0]
