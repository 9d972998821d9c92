"""Models that Hugging Face's TransfoXLLMHeadModel (transformers 4.35) saved.

They have the reference's tensors under other names, and the rows of the head's clusters in another order.
"""

import re
from typing import Any

import torch
from torch import Tensor

from txl.checkpoint.reference_format import (
    ExternalModel,
    check_sizes,
    external_model_config,
    from_reference,
    mapping_report,
)
from txl.config.model import Positions
from txl.config.training import EvaluationConfig
from txl.errors import ConfigError


def _hugging_face_name(name: str) -> str:
    """The name in TransfoXLLMHeadModel of the reference's tensor `name`."""
    name = re.sub(r"crit\.out_layers_(weight|bias)e?s\.#", r"crit.out_layers.#.\1", name)
    return name if name.startswith("crit.") else f"transformer.{name}"


def read_hugging_face(
    config: dict[str, Any], state: dict[str, Tensor], words: list[str] | None, lower_case: bool
) -> ExternalModel:
    """Convert the content of a folder that TransfoXLLMHeadModel was saved to.

    Args:
        config: the content of config.json.
        state: the state dict.
        words: the vocabulary by id, or None.
        lower_case: whether the text was lower-cased.

    Raises:
        ConfigError: an option has a value that this project does not support.
    """
    for key, value in (("attn_type", 0), ("layer_norm_epsilon", 1e-5), ("adaptive", True)):
        if config.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={config[key]} is not supported; only {key}={value}")
    values = config | {"tie_weight": config.get("tie_word_embeddings", True)}
    model = external_model_config(values, Positions.relative, config["untie_r"])
    check_sizes(model, config["vocab_size"], state)
    theirs: dict[str, Tensor] = {}
    report = [f"{len(state)} tensors in Hugging Face's format"]
    for name, tensor in state.items():
        name = name.removeprefix("transformer.")
        if name.endswith(("r_w_bias", "r_r_bias")):
            continue
        projection = re.fullmatch(r"crit\.out_projs\.(\d+)", name)
        if projection and model.tie_projs[min(int(projection[1]), len(model.tie_projs) - 1)]:
            report.append(f"  {name}: tied to the embedding's")
            continue
        name = re.sub(r"crit\.out_layers\.(\d+)\.weight", r"crit.out_layers_weights.\1", name)
        name = re.sub(r"crit\.out_layers\.(\d+)\.bias", r"crit.out_layers_biases.\1", name)
        # Here the i-th column behind the head belongs to cluster i; in the reference the order is reversed.
        theirs[name] = tensor.flip(0) if name in ("crit.cluster_weight", "crit.cluster_bias") else tensor
    if model.tie_weight:
        report.append("  crit.out_layers.#.weight: tied to the embedding's")
    for bias in ("r_w_bias", "r_r_bias"):
        found = [f"transformer.layers.{i}.dec_attn.{bias}" for i in range(model.n_layer)]
        if not model.untie_r:
            found = [name for name in [f"transformer.{bias}", *found] if name in state][:1]
        theirs[bias] = torch.stack([state[name] for name in found])
    ours = {name: tensor.float() for name, tensor in from_reference(theirs, model).items()}
    report[0] += f", {len(ours)} here; the rows of crit.cluster_* were reversed"
    report[1:1] = mapping_report(ours, _hugging_face_name)
    mem_len, same_length = config["mem_len"], config.get("same_length", True)
    if same_length:
        mem_len -= 1  # its window of mem_len keys includes the token itself; here mem_len keys come before the token
        report.append(f"  same_length with mem_len={config['mem_len']} is mem_len={mem_len} here")
    return ExternalModel(
        model=model,
        state=ours,
        vocab_size=config["vocab_size"],
        cutoffs=list(config["cutoffs"]),
        lengths=EvaluationConfig(128, mem_len, 0, config.get("clamp_len", -1), same_length, 16),
        words=words,
        lower_case=lower_case,
        dataset="wt103",
        report=report,
    )
