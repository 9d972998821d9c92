"""How many parameters a model has, from its configuration alone."""

from itertools import pairwise

from txl.config.model import ModelConfig, Positions
from txl.config.training import TrainConfig, longest_context


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of all layers: projections of q, k, v, output (and distances), feed-forward, two LayerNorms."""
    width = model.n_head * model.d_head
    attention = (5 if model.positions is Positions.relative else 4) * model.d_model * width
    feed_forward = 2 * model.d_model * model.d_inner + model.d_inner + model.d_model
    return model.n_layer * (attention + feed_forward + 4 * model.d_model)


def other_parameters(model: ModelConfig, train: TrainConfig, cutoffs: list[int], vocab_size: int) -> int:
    """Parameters of embedding, softmax and positions."""
    d_embed, width = model.d_embed or model.d_model, model.n_head * model.d_head
    edges = [0, *(cutoffs if model.adaptive else []), vocab_size]
    words = [end - begin for begin, end in pairwise(edges)]
    widths = [d_embed // model.div_val**i for i in range(len(words))]
    tails = len(words) - 1
    table = sum(n * w for n, w in zip(words, widths, strict=True))
    projected = model.div_val > 1 or d_embed != model.d_model
    own = [not model.tie_projs[min(i, len(model.tie_projs) - 1)] for i in range(len(words))]
    shared_table = widths[:1] if model.div_val == 1 else widths
    embedding = table + (model.d_model * sum(shared_table) if projected else 0)
    softmax = vocab_size + tails * (d_embed + 1) + (0 if model.tie_weight else table)
    if projected:
        softmax += model.d_model * sum(w for w, mine in zip(widths, own, strict=True) if mine)
    return embedding + softmax + position_parameters(model, longest_context(vars(train)), width)


def position_parameters(model: ModelConfig, longest: int, width: int) -> int:
    """`longest`: rows of the learned tables."""
    match model.positions:
        case Positions.relative:  # u and w
            return 2 * width * (model.n_layer if model.untie_r else 1)
        case Positions.shaw:  # keys and biases per distance, u
            return model.n_layer * (longest * (width + model.n_head) + width)
        case Positions.absolute_per_layer:
            return model.n_layer * longest * model.d_model
        case _:
            return 0
