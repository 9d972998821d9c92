"""What the reference computed: the files of tests/golden, as cases and as models."""

import json
import os
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from txl.checkpoint.reference_format import ATTENTION_TYPES, external_model_config, from_reference
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.model.transformer import TransformerXL

GOLDEN = Path(os.environ.get("TXL_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


FILES = {path: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}


def cases(*keys):
    """Every golden file that is an object with these keys."""
    found = [(path, case) for path, case in FILES.items() if isinstance(case, dict) and set(keys) <= set(case)]
    assert found, f"no golden case with {keys} in {GOLDEN}"
    return pytest.mark.parametrize("path, case", found, ids=[path.stem for path, _ in found])


def model_config(c: dict) -> ModelConfig:
    """As the importer reads the reference's own configuration."""
    return external_model_config(c, ATTENTION_TYPES[c["attn_type"]], untie_r=False)


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


MODELS = [path for path, case in FILES.items() if isinstance(case, dict) and {"config", "segments"} <= set(case)]


def golden(path):
    case, tensors = FILES[path], load_file(path.with_suffix(".safetensors"))
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    return case, tensors, weights


def reference_file(path: Path, case: dict, weights: dict, words: int | None = None, **more) -> Path:
    """A checkpoint_best.pt as the reference writes it, its vocabulary an object of a class that is not here.

    `words`: the size of the vocabulary, if the settings are to say something else.
    """
    c = case["config"]
    keys = "n_layer n_head d_model d_head d_inner d_embed div_val tie_weight tie_projs pre_lnorm attn_type".split()
    lengths = ["tgt_len", "mem_len", "ext_len", "clamp_len", "same_length", "cutoffs"]
    config = {key: c[key] for key in keys + lengths} | {"n_token": c["n_token"], "dropout": 0.1, "dropatt": 0.0}
    words = ["<eos>", *(f"word{i}" for i in range(1, words or c["n_token"]))]
    vocab = Vocab()
    vocab.__dict__ = {"idx2sym": words, "counter": Counter(words), "sym2idx": OrderedDict(), "lower_case": False}
    args = Namespace(dataset="wt103", vocab="word", work_dir=Path("x").name)
    state = {"args": args, "model_config": config, "model_state": weights, "vocab": vocab}
    torch.save(state | more, path)
    return path


class Vocab:
    """Stands in for the reference's class of this name."""
