"""The options of `model=`: architecture and initialisation, and what computes attention.

To add a positional scheme: its name and its facts here, its implementation in txl/model/positions/NAME.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero, added, zero_or_more

MOST_LAYERS = 10_000
MOST_UNITS = 10**6  # of a width; larger numbers are mistakes
MOST_DROPOUT = 0.999  # a mask is drawn with 16 bits: nothing would pass at 0.99999


class Positions(Enum):
    """The choices of `model.positions`: how a model knows where a token stands."""

    relative = "relative"  # Transformer-XL, section 3.3
    shaw = "shaw"  # learned keys and biases per distance (Shaw et al. 2018)
    absolute = "absolute"  # sinusoids added to the embedding (Vaswani et al. 2017)
    absolute_per_layer = "absolute_per_layer"  # learned, added at every layer (Al-Rfou et al. 2018)
    rotary = "rotary"  # queries and keys are rotated (Su et al. 2021)

    @property
    def facts(self) -> PositionFacts:
        """What is known of this scheme without its implementation."""
        return POSITION_FACTS[self]


class Activation(Enum):
    """The function inside of the feed-forward part."""

    relu = "relu"
    gelu = "gelu"  # x times the probability that a normal variable is below x (Hendrycks & Gimpel 2016)


class Init(Enum):
    """The distribution of initial weights."""

    normal = "normal"
    uniform = "uniform"


class BiasInit(Enum):
    """The initial biases of the softmax."""

    zero = "zero"
    unigram = "unigram"


class AttentionBackend(Enum):
    """What computes attention in training. The results differ by rounding only."""

    auto = "auto"  # triton on GPUs since Ampere, in half precision and TF32; eager otherwise
    eager = "eager"
    sdpa = "sdpa"  # torch's scaled_dot_product_attention, with the scores by distance as its mask
    triton = "triton"  # one kernel (txl/model/attention_kernel.py); GPUs only


@dataclass
class ModelConfig:
    """Architecture and initialisation; the names are the paper's."""

    name: str = MISSING  # part of the run folder's name
    n_layer: int = above_zero(most=MOST_LAYERS)  # number of layers
    n_head: int = above_zero(most=MOST_UNITS)  # attention heads of a layer
    d_model: int = above_zero(most=MOST_UNITS)  # width of the layers' input and output
    d_head: int = above_zero(most=MOST_UNITS)  # width of a head
    d_inner: int = above_zero(most=MOST_UNITS)  # width inside of the feed-forward part
    d_embed: int | None = above_zero(None, most=MOST_UNITS)  # width of the embedding; null: d_model
    dropout: float = zero_or_more(most=MOST_DROPOUT)  # share of values that dropout sets to 0
    dropatt: float = zero_or_more(most=MOST_DROPOUT)  # of attention's probabilities
    positions: Positions = MISSING  # how a model knows where a token stands
    pre_lnorm: bool = MISSING  # LayerNorm before each part of a layer instead of after it
    untie_r: bool = MISSING  # one pair of attention biases (u, w) per layer
    adaptive: bool = MISSING  # adaptive input and softmax over data.cutoffs
    div_val: int = above_zero(most=MOST_UNITS)  # the width of each further cluster is divided by this
    tie_weight: bool = MISSING  # softmax weights are the embedding's
    tie_projs: list[bool] = MISSING  # share the embedding's projection, per cluster; the last entry: and all further
    init: Init = MISSING  # distribution of the initial weights
    init_std: float = zero_or_more()  # of init=normal
    init_range: float = zero_or_more()  # of init=uniform
    emb_init: Init = MISSING  # distribution of the initial embedding
    emb_init_range: float = zero_or_more()  # of emb_init=uniform
    proj_init_std: float = zero_or_more()  # of the initial projections of the embedding and the softmax
    activation: Activation = added(Activation.relu)  # the function inside of the feed-forward part
    # zero; unigram: logarithms of the tokens' frequencies in the training split
    bias_init: BiasInit = added(BiasInit.zero)
    value_residual: bool = added(False)  # layers add the first layer's values, times a factor per head, to their own


@dataclass(frozen=True)
class PositionFacts:
    """What the rules, the plan and the runtimes ask about a positional scheme."""

    # Parameters outside of the layers, given the number of tokens that training sees at once (longest_context).
    parameters: Callable[[ModelConfig, int], int]
    projects_distances: bool = False  # every layer has a matrix that projects encoded distances (W_r)
    even_width: str | None = None  # field of ModelConfig that sines and cosines share half and half
    caches_keys: bool = True  # a layer's keys and values stay right when more tokens follow
    clamp_refusal: str | None = None  # why clamp_len has no meaning for it; None: it has


def _relative_parameters(model: ModelConfig, longest: int) -> int:
    """The two biases of the attention score, u and w."""
    return 2 * model.n_head * model.d_head * (model.n_layer if model.untie_r else 1)


def _shaw_parameters(model: ModelConfig, longest: int) -> int:
    """For every layer: a key and a bias of each head per distance, and the bias u."""
    width = model.n_head * model.d_head
    return model.n_layer * (longest * (width + model.n_head) + width)


def _table_parameters(model: ModelConfig, longest: int) -> int:
    """For every layer: a vector per position."""
    return model.n_layer * longest * model.d_model


POSITION_FACTS = {
    Positions.relative: PositionFacts(_relative_parameters, projects_distances=True, even_width="d_model"),
    Positions.shaw: PositionFacts(_shaw_parameters),
    Positions.absolute: PositionFacts(lambda *_: 0, even_width="d_model", caches_keys=False),
    Positions.absolute_per_layer: PositionFacts(
        _table_parameters, caches_keys=False, clamp_refusal="positions beyond its table share the table's first row"
    ),
    Positions.rotary: PositionFacts(
        lambda *_: 0, even_width="d_head", clamp_refusal="the angle between two rotations grows with every distance"
    ),
}
