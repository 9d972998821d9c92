"""How many parameters a model has, from its configuration alone."""

from itertools import pairwise

from txl.config.model import ModelConfig
from txl.config.training import TrainConfig, longest_context


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Parameters of all layers' matrices: projections of q, k, v, output (and distances), feed-forward."""
    width = model.n_head * model.d_head
    attention = (4 + model.positions.facts.projects_distances) * model.d_model * width
    return model.n_layer * (attention + 2 * model.d_model * model.d_inner)


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of all layers: the matrices, the feed-forward part's biases, two LayerNorms, the values' factors."""
    factors = model.value_residual * (model.n_layer - 1) * model.n_head
    return layer_matrix_parameters(model) + model.n_layer * (model.d_inner + 5 * model.d_model) + factors


def other_parameters(model: ModelConfig, train: TrainConfig, cutoffs: list[int], vocab_size: int) -> int:
    """Parameters outside of the layers: embedding, softmax and positions.

    Args:
        model: The architecture.
        train: Its lengths decide how many rows learned position tables have.
        cutoffs: Where the adaptive clusters begin.
        vocab_size: Number of tokens in the vocabulary.

    Returns:
        The number of parameters. Weights that embedding and softmax share are counted once.
    """
    d_embed = model.d_embed or model.d_model
    edges = [0, *(cutoffs if model.adaptive else []), vocab_size]
    words = [end - begin for begin, end in pairwise(edges)]
    widths: list[int] = [d_embed // model.div_val**i for i in range(len(words))]
    tails = len(words) - 1
    table = sum(n * w for n, w in zip(words, widths, strict=True))
    projected = model.div_val > 1 or d_embed != model.d_model
    own = [not model.tie_projs[min(i, len(model.tie_projs) - 1)] for i in range(len(words))]
    shared_table = widths[:1] if model.div_val == 1 else widths
    embedding = table + (model.d_model * sum(shared_table) if projected else 0)
    softmax = vocab_size + tails * (d_embed + 1) + (0 if model.tie_weight else table)
    if projected:
        softmax += model.d_model * sum(w for w, mine in zip(widths, own, strict=True) if mine)
    return embedding + softmax + model.positions.facts.parameters(model, longest_context(vars(train)))
