"""The reference's checkpoints (NVIDIA's Transformer-XL): names, shapes and settings there, and those of this project.

State dicts convert one to one in both directions. A tensor that the reference stores twice because it is tied is
stored once here.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from txl.config.model import Activation, Init, ModelConfig, Positions
from txl.config.training import EvaluationConfig
from txl.errors import ConfigError

# (the reference's name, the name here); # is the number of a layer or a cluster
NAMES = [
    ("word_emb.emb_layers.#.weight", "embedding.tables.#"),
    ("word_emb.emb_projs.#", "embedding.projections.#"),
    ("layers.#.dec_attn.qkv_net.weight", "layers.#.attention.qkv.weight"),
    ("layers.#.dec_attn.o_net.weight", "layers.#.attention.output.weight"),
    ("layers.#.dec_attn.r_net.weight", "layers.#.attention.position.weight"),
    ("layers.#.dec_attn.layer_norm.weight", "layers.#.attention.norm.weight"),
    ("layers.#.dec_attn.layer_norm.bias", "layers.#.attention.norm.bias"),
    ("layers.#.pos_ff.CoreNet.0.weight", "layers.#.feed_forward.inner.weight"),
    ("layers.#.pos_ff.CoreNet.0.bias", "layers.#.feed_forward.inner.bias"),
    ("layers.#.pos_ff.CoreNet.3.weight", "layers.#.feed_forward.outer.weight"),
    ("layers.#.pos_ff.CoreNet.3.bias", "layers.#.feed_forward.outer.bias"),
    ("layers.#.pos_ff.layer_norm.weight", "layers.#.feed_forward.norm.weight"),
    ("layers.#.pos_ff.layer_norm.bias", "layers.#.feed_forward.norm.bias"),
    ("r_w_bias", "positions.content_bias"),
    ("r_r_bias", "positions.position_bias"),
    ("r_bias", "positions.distance_bias"),
    ("crit.out_layers_biases.#", "softmax.biases.#"),
    ("crit.out_layers_weights.#", "softmax.weights.#"),
    ("crit.out_projs.#", "softmax.projections.#"),
    ("crit.cluster_weight", "softmax.cluster_weight"),
    ("crit.cluster_bias", "softmax.cluster_bias"),
]


DERIVED = re.compile(r"pos_emb\.inv_freq|crit\.shared_out_projs\.\d+")  # constants, second names of tied tensors


ATTENTION_TYPES = [Positions.relative, Positions.shaw, Positions.absolute, Positions.absolute_per_layer]


# The reference's defaults. They have no effect on weights that are trained already.
REFERENCE_INIT: dict[str, Any] = dict(
    init=Init.normal,
    init_std=0.02,
    init_range=0.1,
    emb_init=Init.normal,
    emb_init_range=0.01,
    proj_init_std=0.01,
)


LENGTHS = ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")


@dataclass
class ExternalModel:
    """A model that is exchanged with another implementation, with names and settings of this project."""

    model: ModelConfig
    state: dict[str, Tensor]  # weights by name
    vocab_size: int
    cutoffs: list[int]
    lengths: EvaluationConfig  # the lengths it was trained with
    words: list[str] | None  # the vocabulary by id; None if the source has none
    lower_case: bool
    dataset: str
    report: list[str]  # lines for the user: what was read and how it was converted


def _renamed(name: str, source: int, target: int) -> str | None:
    """Translate a tensor's name by the table NAMES; column 0 is the reference, column 1 this project."""
    for row in NAMES:
        if match := re.fullmatch(re.escape(row[source]).replace(r"\#", r"(\d+)"), name):
            return row[target].replace("#", match[1]) if match.groups() else row[target]
    return None


def from_reference(state: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """The reference's state dict with the names and shapes of this project. Raises ConfigError for an unknown name."""
    ours = {}
    for name, tensor in _fused_qkv(state).items():
        if DERIVED.fullmatch(name) or (name.startswith("crit.out_layers_weights") and model.tie_weight):
            continue
        table = "positions.distance_key" if model.positions is Positions.shaw else "positions.table"
        mapped = table if name == "r_emb" else _renamed(name, 0, 1)
        if mapped is None:
            raise ConfigError(f"{name}: not a tensor of the reference's model")
        shared_by_layers = model.positions is Positions.relative and name in ("r_w_bias", "r_r_bias")
        ours[mapped] = tensor[None] if shared_by_layers and tensor.dim() == 2 else tensor
    return ours


def to_reference(state: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """A state dict of this project with the reference's names and shapes.

    With `untie_r` the position biases are [n_layer, n_head, d_head], otherwise [n_head, d_head].
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mapped = "r_emb" if name in ("positions.distance_key", "positions.table") else _renamed(name, 1, 0)
        assert mapped is not None, name
        shared_by_layers = model.positions is Positions.relative and mapped in ("r_w_bias", "r_r_bias")
        theirs[mapped] = tensor[0] if shared_by_layers and not model.untie_r else tensor
        if name.startswith("embedding.projections."):
            theirs[mapped.replace("word_emb.emb_projs", "crit.shared_out_projs")] = tensor
    if model.positions in (Positions.absolute, Positions.absolute_per_layer):
        width = model.n_head * model.d_head
        for name in [name for name in theirs if name.endswith("qkv_net.weight")]:
            layer, fused = name.removesuffix("qkv_net.weight"), theirs.pop(name)
            theirs[layer + "q_net.weight"], theirs[layer + "kv_net.weight"] = fused[:width], fused[width:]
    if model.positions in (Positions.relative, Positions.absolute):
        exponent = torch.arange(0.0, model.d_model, 2.0) / model.d_model
        theirs["pos_emb.inv_freq"] = 1 / 10000**exponent
    return theirs


def mapping_report(ours: dict[str, Tensor], their_name: Callable[[str], str] = str) -> list[str]:
    """One line per kind of tensor: the name there, the name here, the number of tensors, and their shapes.

    `their_name` translates the reference's name to another implementation's.
    """
    theirs = {row[1]: row[0] for row in NAMES} | dict.fromkeys(("positions.distance_key", "positions.table"), "r_emb")
    kinds: dict[str, list[str]] = {}
    for name, tensor in ours.items():
        kinds.setdefault(re.sub(r"\.\d+(?=\.|$)", ".#", name), []).append("x".join(map(str, tensor.shape)))
    return [
        f"  {their_name(theirs[kind])} -> {kind}: {len(shapes)} of {', '.join(dict.fromkeys(shapes))}"
        for kind, shapes in kinds.items()
    ]


def _fused_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join q and [k; v], which the reference's absolute schemes store apart, to one tensor."""
    fused = dict(state)
    for name in state:
        if name.endswith("q_net.weight"):
            layer = name.removesuffix("q_net.weight")
            fused[layer + "qkv_net.weight"] = torch.cat([fused.pop(name), fused.pop(layer + "kv_net.weight")])
    return fused


def external_model_config(values: dict[str, Any], positions: Positions, untie_r: bool) -> ModelConfig:
    """The architecture from the other implementation's settings."""
    shared = ("n_layer", "n_head", "d_model", "d_head", "d_inner", "div_val", "dropout", "dropatt", "tie_weight")
    return ModelConfig(
        **{key: values[key] for key in shared},
        name="imported",
        d_embed=values["d_embed"] if values["d_embed"] != values["d_model"] else None,
        positions=positions,
        pre_lnorm=values.get("pre_lnorm", False),
        untie_r=untie_r,
        adaptive=True,
        tie_projs=list(values["tie_projs"]) or [False],
        **REFERENCE_INIT,
    )


def check_sizes(model: ModelConfig, vocab_size: Any, state: dict[str, Tensor]) -> None:
    """Raises ValueError if the settings describe a much larger model than the weights are for."""
    elements = sum(tensor.numel() for tensor in state.values())
    widths = [vocab_size, model.d_model, model.d_head, model.d_inner, model.n_head, model.div_val, model.d_embed or 1]
    fits = type(model.n_layer) is int and 0 < model.n_layer <= len(state)
    if not fits or not all(type(width) is int and 0 < width <= max(elements, 64) for width in widths):
        raise ValueError("its settings do not fit its weights")


def read_reference(checkpoint: dict[str, Any]) -> ExternalModel:
    """Convert the content of the reference's checkpoint_best.pt."""
    values, args, vocab = checkpoint["model_config"], checkpoint.get("args"), checkpoint.get("vocab")
    if values.get("sample_softmax", -1) > 0:
        raise ConfigError("the checkpoint was trained with sampled softmax, whose output layer is not supported")
    state = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model_state"].items()}
    untie_r = values["attn_type"] == 0 and state["r_w_bias"].dim() == 3
    model = external_model_config(values, ATTENTION_TYPES[values["attn_type"]], untie_r)
    check_sizes(model, values["n_token"], state)
    ours = {name: tensor.float() for name, tensor in from_reference(state, model).items()}
    vocabulary = vocab if isinstance(vocab, dict) else vars(vocab) if vocab is not None else {}
    lengths = {"mem_len": 0, "ext_len": 0, "clamp_len": -1, "same_length": False} | values
    report = [f"{len(state)} tensors in the reference's format, {len(ours)} here", *mapping_report(ours)]
    report += [f"  {name}: not stored here (a constant, or tied)" for name in state if DERIVED.fullmatch(name)]
    return ExternalModel(
        model=model,
        state=ours,
        vocab_size=values["n_token"],
        cutoffs=list(values["cutoffs"]),
        lengths=EvaluationConfig(**{key: lengths[key] for key in LENGTHS}, batch_size=16),
        words=list(vocabulary["idx2sym"]) if vocabulary.get("idx2sym") else None,
        lower_case=bool(vocabulary.get("lower_case", False)),
        dataset=getattr(args, "dataset", None) or "wt103",
        report=report,
    )


def reference_checkpoint(external: ExternalModel) -> dict[str, Any]:
    """The inverse of `read_reference`: what the reference's evaluation reads."""
    model = external.model
    unknown = {
        f"positions={model.positions.name}": model.positions not in ATTENTION_TYPES,
        f"activation={model.activation.name}": model.activation is not Activation.relu,
        "value_residual=true": model.value_residual,
    }
    for option, is_unknown in unknown.items():
        if is_unknown:
            raise ConfigError(f"model.{option} does not exist in the reference's format; use safetensors")
    shared = ("n_layer", "n_head", "d_model", "d_head", "d_inner", "div_val", "dropout", "dropatt", "tie_weight")
    values = {key: getattr(model, key) for key in shared} | {key: getattr(external.lengths, key) for key in LENGTHS}
    values |= {
        "n_token": external.vocab_size,
        "d_embed": model.d_embed or model.d_model,
        "cutoffs": external.cutoffs,
        "tie_projs": [model.tie_projs[min(i, len(model.tie_projs) - 1)] for i in range(len(external.cutoffs) + 1)],
        "pre_lnorm": model.pre_lnorm,
        "attn_type": ATTENTION_TYPES.index(model.positions),
        "sample_softmax": -1,
    }
    return {
        "args": Namespace(vocab="word", dataset=external.dataset),
        "model_config": values,
        "model_state": to_reference(external.state, model),
        "vocab": {"idx2sym": external.words, "lower_case": external.lower_case},
    }
