"""Models that were saved without their settings: a whole module, as the authors' train.py saved it, or weights by name.

A module arrives as records (safe_unpickle.py): no code of it is needed or run. Tensors have the reference's names, but
for the output layers, which are crit.out_layers.#.weight and .bias in the authors' code. What the settings are follows
from the module's attributes, or from the tensors' shapes as far as they say it.
"""

import re
from typing import Any

from torch import Tensor

from txl.checkpoint.pickle_functions import Record
from txl.errors import ConfigError

WT103 = (267735, [20000, 40000, 200000])  # vocabulary and clusters of the published models

# Settings that no weight depends on, for weights without settings. An evaluation may choose others.
ASSUMED: dict[str, Any] = {
    "pre_lnorm": False,
    "tgt_len": 128,
    "mem_len": 128,
    "ext_len": 0,
    "clamp_len": -1,
    "same_length": False,
}
ASSUMED |= {"dropout": 0.0, "dropatt": 0.0}


def read_module(module: Record) -> dict[str, Any]:
    """The content of a checkpoint of the reference, from a whole module. Raises ConfigError if it is another model."""
    while isinstance(inner := vars(module).get("_modules", {}).get("module"), Record):
        module = inner  # DataParallel, DistributedDataParallel
    state = _usual_names(_tensors(module, ""))
    known = vars(module)
    if not {"n_layer", "n_head", "d_model", "n_token"} <= set(known):
        raise ConfigError("it is a module, but no Transformer-XL: it has no n_layer, n_head, d_model and n_token")
    values = settings_from_shapes(state, [int(edge) for edge in _cutoffs(module, int(known["n_token"]))])
    lengths = ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")
    values |= {name: known[name] for name in lengths if name in known}
    layers = vars(known["_modules"]["layers"])["_modules"]
    attention = vars(vars(layers["0"])["_modules"]["dec_attn"])
    values["pre_lnorm"] = bool(attention.get("pre_lnorm", False))
    drops = {"dropout": known["_modules"].get("drop"), "dropatt": attention["_modules"].get("dropatt")}
    values |= {name: float(vars(drop)["p"]) for name, drop in drops.items() if isinstance(drop, Record)}
    return {"model_config": values, "model_state": state}


def read_weights_alone(state: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a checkpoint of the reference, from weights by name. Raises ConfigError if they are another's."""
    state = _usual_names({name.removeprefix("module."): tensor for name, tensor in state.items()})
    if "embedding.tables.0" in state:
        raise ConfigError("its weights have this project's names: evaluate it with config_file=RUN/config.yaml")
    return {"model_config": settings_from_shapes(state, None), "model_state": state}


def settings_from_shapes(state: dict[str, Tensor], cutoffs: list[int] | None) -> dict[str, Any]:
    """The settings of a model with relative positions that follow from its weights; ASSUMED for all others.

    Args:
        state: the weights by the reference's names. Those that are tied to others are taken out.
        cutoffs: the clusters' boundaries; None: they must follow from the shapes.

    Raises:
        ConfigError: the weights are those of another model, or do not say where clusters end.
    """
    tables = _numbered(state, "word_emb.emb_layers.#.weight")
    if not tables or "r_w_bias" not in state or "layers.0.dec_attn.r_net.weight" not in state:
        raise ConfigError("these are no weights of a Transformer-XL with relative positions (word_emb, r_w_bias)")
    width, vocab_size = tables[0].shape[1], sum(len(table) for table in tables)
    clusters = len(state["crit.cluster_bias"]) if "crit.cluster_bias" in state else 0
    if cutoffs is None and len(tables) > 1:
        cutoffs = [sum(len(table) for table in tables[: i + 1]) for i in range(len(tables) - 1)]
    elif cutoffs is None and clusters:
        if (vocab_size, clusters) != (WT103[0], len(WT103[1])):
            raise ConfigError(f"its weights do not say where its {clusters} clusters of rare words end; import the "
                              "whole checkpoint, which holds its settings")  # fmt: skip
        cutoffs = list(WT103[1])
    tied = _take_out_tied(state, tables, len(cutoffs or []))
    return ASSUMED | tied | {
        "n_token": vocab_size,
        "n_layer": len(_numbered(state, "layers.#.dec_attn.qkv_net.weight")),
        "n_head": state["r_w_bias"].shape[-2],
        "d_head": state["r_w_bias"].shape[-1],
        "d_model": state["layers.0.dec_attn.qkv_net.weight"].shape[1],
        "d_inner": len(state["layers.0.pos_ff.CoreNet.0.weight"]),
        "d_embed": width,
        "div_val": width // tables[1].shape[1] if len(tables) > 1 else 1,
        "cutoffs": cutoffs or [],
        "attn_type": 0,
    }  # fmt: skip


def _take_out_tied(state: dict[str, Tensor], tables: list[Tensor], clusters: int) -> dict[str, Any]:
    """tie_weight and tie_projs; the second copies of tied tensors are removed from `state`."""
    outputs = _numbered(state, "crit.out_layers_weights.#")
    tie_weight = all(_same(one, other) for one, other in zip(outputs, tables, strict=False))
    if tie_weight:
        for i in range(len(outputs)):
            del state[f"crit.out_layers_weights.{i}"]
    embedding = _numbered(state, "word_emb.emb_projs.#")
    tie_projs = []
    for i in range(clusters + 1):
        projection = state.get(f"crit.out_projs.{i}")
        owner = embedding[min(i, len(embedding) - 1)] if embedding else None
        tie_projs.append(projection is None or (owner is not None and _same(projection, owner)))
        if projection is not None and tie_projs[-1]:
            del state[f"crit.out_projs.{i}"]
    return {"tie_weight": tie_weight, "tie_projs": tie_projs}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or bool((one == other).all()))


def _tensors(module: Record, prefix: str) -> dict[str, Tensor]:
    """The parameters and buffers of a module and of those inside of it, by name."""
    attributes, found = vars(module), {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in attributes.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                found[prefix + name] = tensor
    for name, inner in attributes.get("_modules", {}).items():
        if isinstance(inner, Record):
            found |= _tensors(inner, f"{prefix}{name}.")
    return found


def _cutoffs(module: Record, vocab_size: int) -> list[Any]:
    """The clusters' boundaries, which the authors' code keeps with the size of the vocabulary behind them."""
    cutoffs = list(vars(vars(module)["_modules"]["crit"]).get("cutoffs", []))
    return cutoffs[:-1] if cutoffs[-1:] == [vocab_size] else cutoffs


def _usual_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names for the authors' output layers."""
    names = {r"crit\.out_layers\.(\d+)\.weight": r"crit.out_layers_weights.\1"}
    names |= {r"crit\.out_layers\.(\d+)\.bias": r"crit.out_layers_biases.\1"}
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = re.sub(f"^{old}$", new, name)
        renamed[name] = tensor
    return renamed


def _numbered(state: dict[str, Tensor], pattern: str) -> list[Tensor]:
    """The tensors whose name is `pattern` with 0, 1, ... for #, in this order."""
    found: list[Tensor] = []
    while (name := pattern.replace("#", str(len(found)))) in state:
        found.append(state[name])
    return found
