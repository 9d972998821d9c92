"""The plan's estimate of memory against what autograd keeps."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.support.configurations import composed
from txl.config.geometry import train_geometry
from txl.config.optimizer import OptimizerName
from txl.config.precision import Arithmetic
from txl.config.schema import RunConfig
from txl.model import cluster_loss
from txl.model.transformer import TransformerXL
from txl.optim.build import build_optimizer
from txl.plan import memory_estimate
from txl.plan.memory_estimate import memory_terms
from txl.plan.parameter_count import layer_parameters
from txl.plan.run_plan import make_plan

VOCAB, MICRO = 2000, 4
OWN_TEXT = ["hardware=cpu", "data=text", "data.train=a", "data.valid=b", f"data.vocab_size={VOCAB}"]
GEOMETRIES = [
    ["train.tgt_len=64", "train.mem_len=64"],
    ["train.tgt_len=32", "train.mem_len=160", "model.n_head=4", "model.dropatt=0.1"],
    ["train.tgt_len=96", "train.mem_len=0", "model.d_model=256", "model.d_inner=512"],
    ["train.tgt_len=48", "train.mem_len=48", "model.dropout=0.0", "model.n_layer=5"],
    ["train.tgt_len=64", "train.mem_len=64", "model.positions=rotary", "evaluation.clamp_len=-1"],
]
MULTI_TOKEN = ["train.multi_token_weight=0.5", "train.multi_token_steps=9"]
MODERN = ["model.activation=gelu", "model.value_residual=true", "model.dropout=0", *MULTI_TOKEN]


def test_the_micro_batches_of_machines_without_a_published_one_fit():
    machines = {"a100": 80, "h100": 80, "h200": 141, "l4": 24}  # GB
    for model, precision in itertools.product(("base", "large"), ("fp32", "tf32", "bf16")):
        attention = "eager" if precision == "fp32" else "triton"
        config = composed(f"model={model}", f"precision={precision}", f"attention={attention}", "hardware=h100")
        caps = config.train.micro_batch_cap
        for name, memory in machines.items():
            micro = caps[name][precision]
            hardware = replace(config.hardware, name=name, memory_gb=memory, gpus=1)
            train = replace(config.train, batch_size=micro)
            plan = make_plan(replace(config, hardware=hardware, train=train), 267_735)
            assert plan.micro_batch_size == micro
            assert plan.memory_gb <= 0.9 * memory, (model, name, precision)
            assert caps[name]["fp16"] == caps[name]["bf16"]


def saved_bytes(config: RunConfig) -> int:
    """Bytes that one forward pass keeps for the backward pass besides parameters and memories."""
    geometry = train_geometry(config)
    longest = geometry.tgt_len + geometry.mem_len
    backend, recompute = config.attention, config.recompute
    model = TransformerXL(config.model, VOCAB, config.data.cutoffs, longest, backend, recompute).train()
    input, mems = torch.randint(VOCAB, (MICRO, geometry.tgt_len)), []
    while not mems or mems[0].shape[1] < geometry.mem_len:
        with torch.no_grad():
            _, mems = model(input, mems, geometry)
        if geometry.mem_len == 0:
            break
    there = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *mems]}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision.name is Arithmetic.bf16)
    with half, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden, _ = model(input, mems, geometry)
        model.total_loss(hidden, input, multi_token_weight=config.train.multi_token_weight_at(0))
    return sum(size for size, _ in kept.values())


def estimate(config: RunConfig) -> dict[str, float]:
    return memory_terms(config, VOCAB, make_plan(config).parameters, MICRO, MICRO, 1)


@pytest.mark.parametrize("geometry", [*GEOMETRIES, MODERN], ids=" ".join)
def test_activations_are_estimated_within_15_percent_of_what_is_kept(geometry):
    config = composed(*OWN_TEXT, "model.n_layer=3", "valid.tgt_len=16", *geometry)
    assert estimate(config)["activations"] == pytest.approx(saved_bytes(config), rel=0.15)


@pytest.mark.parametrize("geometry", [*GEOMETRIES[:2], MODERN], ids=" ".join)
def test_in_half_precision_too_and_beside_the_cast_weights(geometry):
    config = composed(*OWN_TEXT, "model.n_layer=3", "valid.tgt_len=16", "precision=bf16", *geometry)
    kept = saved_bytes(config) - 2 * layer_parameters(config.model)
    assert estimate(config)["activations"] == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("options", [[], MODERN], ids=["published", "modern"])
def test_recomputing_keeps_the_inputs_of_layers_and_the_insides_of_one(options):
    geometry = ["train.tgt_len=64", "train.mem_len=64", "valid.tgt_len=16", *options]
    one = composed(*OWN_TEXT, *geometry, "model.n_layer=1")
    config = composed(*OWN_TEXT, *geometry, "model.n_layer=6", "recompute=true")
    during_backward = saved_bytes(config) + estimate(one)["activations"]
    assert estimate(config)["activations"] == pytest.approx(during_backward, rel=0.15)


def test_the_plan_knows_how_many_logits_are_held():
    assert memory_estimate.LOGITS_AT_ONCE == cluster_loss.LOGITS_AT_ONCE


@pytest.mark.parametrize("name", [name.name for name in OptimizerName])
def test_the_states_of_every_optimizer_are_estimated_within_15_percent(name):
    config = composed(*OWN_TEXT, "model.n_layer=3", f"optimizer={name}")
    model = TransformerXL(config.model, VOCAB, config.data.cutoffs, 48)
    optimizer = build_optimizer(config.optimizer, model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [value for value in tree_leaves(optimizer.state_dict()) if isinstance(value, torch.Tensor)]
    assert estimate(config)["optimizer"] == pytest.approx(sum(state.nbytes for state in states), rel=0.15, abs=4096)


def test_the_fused_kernel_keeps_no_mask_of_what_attention_dropped():
    chosen = ["model=large", "hardware=dgxa100", "precision=fp16", "train.micro_batch_size=16", "model.dropatt=0.1"]
    eager, fused = (make_plan(composed(*chosen, f"attention={name}")).memory_gb for name in ("eager", "triton"))
    masks = 16 * 18 * 16 * 384 * 768 * 3 / 1e9  # sequences, layers, heads, queries, keys; two bytes and one
    assert eager - fused == pytest.approx(masks, rel=0.01)


def test_large_at_micro_batch_16_in_half_precision_fits_40_gb():
    published = ["model=large", "hardware=dgxa100", "precision=fp16", "train.micro_batch_size=16"]
    assert make_plan(composed(*published)).memory_gb < 40


@pytest.mark.parametrize("mem_len", [16, 48, 160])
def test_memories_keep_what_is_estimated(mem_len):
    config = composed(*OWN_TEXT, "model.n_layer=3", "valid.tgt_len=16", "train.tgt_len=48", f"train.mem_len={mem_len}")
    geometry = train_geometry(config)
    model = TransformerXL(config.model, VOCAB, config.data.cutoffs, 48 + mem_len).train()
    mems = []
    for _ in range(6):
        _, mems = model(torch.randint(VOCAB, (MICRO, 48)), mems, geometry)
    assert sum(mem.untyped_storage().nbytes() for mem in mems) == estimate(config)["mems"]
