"""The options of `model=`: architecture and initialisation, and what computes attention."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Positions(Enum):
    """How a model knows where a token stands (attention.py)."""

    relative = "relative"  # Transformer-XL, section 3.3
    shaw = "shaw"  # learned keys and biases per distance (Shaw et al. 2018)
    absolute = "absolute"  # sinusoids added to the embedding (Vaswani et al. 2017)
    absolute_per_layer = "absolute_per_layer"  # learned, added at every layer (Al-Rfou et al. 2018)


class Init(Enum):
    normal = "normal"
    uniform = "uniform"


class AttentionBackend(Enum):
    """What computes attention in training (attention.py); all are equal but for rounding."""

    auto = "auto"  # triton on GPUs since Ampere, in half precision and TF32; eager otherwise
    eager = "eager"
    sdpa = "sdpa"  # torch's scaled_dot_product_attention, with the distances' scores as its mask
    triton = "triton"  # one kernel for all of it (kernels/relative_attention.py); GPUs only


@dataclass
class ModelConfig:
    """Architecture and initialisation; the names are the paper's."""

    name: str = MISSING
    n_layer: int = MISSING
    n_head: int = MISSING
    d_model: int = MISSING
    d_head: int = MISSING
    d_inner: int = MISSING
    d_embed: int | None = None  # embedding width; null: d_model
    dropout: float = MISSING
    dropatt: float = MISSING
    positions: Positions = MISSING
    pre_lnorm: bool = MISSING
    untie_r: bool = MISSING  # one pair of attention biases (u, w) per layer
    adaptive: bool = MISSING  # adaptive input and softmax over data.cutoffs
    div_val: int = MISSING  # each further cluster is this much narrower
    tie_weight: bool = MISSING  # softmax weights are the embedding's
    tie_projs: list[bool] = MISSING  # per cluster; the last entry holds for all further ones
    init: Init = MISSING
    init_std: float = MISSING
    init_range: float = MISSING
    emb_init: Init = MISSING
    emb_init_range: float = MISSING
    proj_init_std: float = MISSING
