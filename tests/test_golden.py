"""What the reference implementation computed is what we compute.

Cases are found by what their JSON files hold, never by name. TXL_GOLDEN_DIR points elsewhere when it is set.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from txl import convert
from txl.choices import OptimizerName
from txl.config import Geometry, ModelConfig, OptimizerConfig
from txl.convert import from_reference
from txl.data import TokenStream
from txl.model import TransformerXL
from txl.moses import tokenize
from txl.optim import build_optimizer
from txl.vocab import WordVocabulary

GOLDEN = Path(os.environ.get("TXL_GOLDEN_DIR") or Path(__file__).parent / "golden")
FILES = {path: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}


def cases(*keys):
    """Every golden file that is an object with these keys."""
    found = [(path, case) for path, case in FILES.items() if isinstance(case, dict) and set(keys) <= set(case)]
    assert found, f"no golden case with {keys} in {GOLDEN}"
    return pytest.mark.parametrize("path, case", found, ids=[path.stem for path, _ in found])


def model_config(c: dict) -> ModelConfig:
    """As the importer reads the reference's own configuration."""
    return convert.model_config(c, convert.ATTENTION_TYPES[c["attn_type"]], untie_r=False)


def geometry(c: dict) -> Geometry:
    return Geometry(c["tgt_len"], c["mem_len"], c["ext_len"], c["clamp_len"], c["same_length"])


def load_model(case: dict, tensors: dict) -> TransformerXL:
    c = case["config"]
    config = model_config(c)
    model = TransformerXL(config, c["n_token"], c["cutoffs"], c["tgt_len"] + c["ext_len"] + c["mem_len"]).double()
    weights = {k.removeprefix("weights/"): t.double() for k, t in tensors.items() if k.startswith("weights/")}
    missing, unexpected = model.load_state_dict(from_reference(weights, config), strict=True)
    assert not missing and not unexpected
    return model


def segment_losses(model, stream, geometry, n_segments):
    """Mean loss of each segment, memory carried along; the last loss keeps its graph."""
    mems, losses = [], []
    for s in range(n_segments):
        begin, end = s * geometry.tgt_len, (s + 1) * geometry.tgt_len
        input = stream[max(0, begin - geometry.ext_len) : end].t()
        target = stream[begin + 1 : end + 1].t()
        hidden, mems = model(input, mems, geometry)
        losses.append(model.loss(hidden, target).mean())
    return losses, mems


def close(ours, theirs):
    """1e-6 relative in float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


@cases("config", "segments")
def test_losses_memories_and_gradients_equal_the_reference(path, case):
    tensors = load_file(path.with_suffix(".safetensors"))
    model = load_model(case, tensors).train()
    losses, mems = segment_losses(model, tensors["stream"], geometry(case["config"]), case["segments"])
    close(torch.stack(losses).detach(), tensors["train/mean_loss_per_segment"])
    if "train/mems_after_last" in tensors:
        close(torch.stack(mems).transpose(1, 2), tensors["train/mems_after_last"])
    losses[-1].backward()
    expected = {k.removeprefix("grad/"): t for k, t in tensors.items() if k.startswith("grad/")}
    expected = from_reference(expected, model_config(case["config"]))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in expected.items():
        close(ours[name], gradient)
    assert len(expected) > 10


@cases("config", "eval_overrides")
def test_evaluation_with_other_lengths_equals_the_reference(path, case):
    if case["eval_overrides"] is None:
        case = dict(case, eval_overrides={})
    tensors = load_file(path.with_suffix(".safetensors"))
    if "eval/stream" not in tensors:
        assert not case["eval_overrides"]
        return
    model = load_model(case, tensors).eval()
    with torch.no_grad():
        expected = tensors["eval/mean_loss_per_segment"]
        lengths = geometry(case["config"] | case["eval_overrides"])
        losses, _ = segment_losses(model, tensors["eval/stream"], lengths, len(expected))
    close(torch.stack(losses), expected)


@cases("kwargs", "steps", "params")
def test_lamb_takes_the_reference_steps(path, case):
    tensors = load_file(path.with_suffix(".safetensors"))
    names = list(case["params"])
    parameters = {name: torch.nn.Parameter(tensors[f"init/{name}"].clone()) for name in names}
    config = OptimizerConfig(
        name=OptimizerName.lamb,
        lr=case["kwargs"]["lr"],
        weight_decay=case["kwargs"]["weight_decay"],
        betas=[0.9, 0.999],
        eps=1e-6,
        momentum=0.0,
    )
    optimizer = build_optimizer(config, parameters.values())
    for step in range(case["steps"]):
        for name in names:
            parameters[name].grad = tensors[f"grad/{step}/{name}"].clone()
        optimizer.step()
        for name in names:
            torch.testing.assert_close(parameters[name].detach(), tensors[f"param/{step}/{name}"], rtol=1e-6, atol=1e-8)


@cases("n", "batch_size", "batches")
def test_batches_are_the_reference_batches(path, case):
    seeds, memory = case["roll_seeds"], case["mem_len_warmup"]
    stream = TokenStream(
        np.arange(case["n"], dtype=np.int32),
        case["batch_size"],
        case["tgt_len"],
        ext_len=case["ext_len"],
        roll_seed=seeds[0] - 1 if seeds else None,
        warmup_len=memory or 0,
    )
    assert stream.n_batches == case["n_batch"]
    epoch = max(1, len(seeds))
    for index, expected in enumerate(case["batches"]):
        batch = stream.batch(epoch, index)
        assert batch.input.t().tolist() == expected["data"]
        assert batch.target.t().tolist() == expected["target"]
        assert batch.counted == expected["counted"]


@cases("text", "idx2sym")
def test_word_vocabularies_are_the_reference_vocabularies(path, case, tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(case["text"], encoding="utf-8")
    kwargs = {key: value for key, value in case["kwargs"].items() if key != "special"}
    vocabulary = WordVocabulary.build([file], **kwargs)
    assert list(vocabulary.words) == case["idx2sym"]
    if case["ids_add_eos"] is not None:
        ids = vocabulary.encode(case["text"], add_eos=True)
        assert ids.tolist() == case["ids_add_eos"]
    if case["ids_no_eos"] is not None:
        assert vocabulary.encode(case["text"], add_eos=False).tolist() == case["ids_no_eos"]


@pytest.mark.parametrize(
    "path, case",
    [
        pytest.param(path, case, id=f"{path.stem}-{i}")
        for path, found in FILES.items()
        if isinstance(found, list)
        for i, case in enumerate(found)
        if {"text", "tokens"} <= set(case)
    ],
)
def test_typed_text_is_tokenized_as_the_reference_does(path, case):
    assert tokenize(case["text"]) == case["tokens"]
