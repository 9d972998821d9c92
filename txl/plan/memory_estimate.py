"""How much memory a training step takes on one device, estimated from its configuration alone.

Shapes: B sequences (the micro batch), T queries (ext_len + tgt_len), M memory (mem_len), K = M + T keys, N heads,
D model dim, W = N * d_head, F = d_inner, L layers.
"""

from itertools import pairwise

from txl.config.model import Activation, AttentionBackend, ModelConfig
from txl.config.schema import RunConfig
from txl.config.training import longest_context
from txl.plan.parameter_count import layer_matrix_parameters, layer_parameters

TAIL_SHARE = 0.15  # of all tokens that fall into one tail cluster of an adaptive softmax, at most

LOGITS_AT_ONCE = 2**25  # the adaptive softmax's (txl/model/cluster_loss.py, which would import torch)
HALF_LOGITS_AT_ONCE = 2**29  # on a GPU in half precision (txl/model/half_softmax.py)


def memory_terms(
    config: RunConfig, vocab_size: int, parameters: int, micro: int, local: int, world_size: int
) -> dict[str, float]:
    """Estimates the memory of one device at the end of a forward pass. attention=auto and sdpa count as eager.

    Args:
        config: The configuration of the run.
        vocab_size: Number of tokens in the vocabulary.
        parameters: Number of parameters of the model.
        micro: Sequences of a forward pass.
        local: Sequences of this process per step; more than `micro` if gradients are accumulated.
        world_size: Number of processes.

    Returns:
        Bytes by what they are for:

        weights      a copy in half precision included, if the arithmetic is half
        gradients    twice with several processes (the buckets that are reduced); with accumulation the gradients of
                     all but the layers twice, because the softmax's are there before the backward pass
        optimizer    the numbers that it keeps for each parameter
        activations  what the layers keep for the backward pass
        logits       and their probabilities
        mems         memories of the local batch: views of the segment if that is long enough; none on a GPU with
                     swap_mem
    """
    model, train, arithmetic = config.model, config.train, config.precision.name
    full = arithmetic.parameter_bytes
    copies = parameters if world_size > 1 else 0
    copies += parameters - layer_parameters(model) if local > micro else 0
    T = longest_context(vars(train)) - train.mem_len
    on_device = train.mem_len > 0 and (config.hardware.gpus == 0 or not train.swap_mem)
    return {
        "weights": parameters * (full + (2 if arithmetic.is_half else 0)),
        "gradients": (parameters + copies) * full,
        "optimizer": full * _optimizer_states(config, parameters),
        "activations": micro * _activation_bytes(config),
        "logits": _logit_bytes(config, micro * train.tgt_len, vocab_size),
        "mems": local * model.n_layer * max(train.mem_len, T) * model.d_model * full if on_device else 0,
    }


def _optimizer_states(config: RunConfig, parameters: int) -> int:
    """How many numbers the optimizer keeps for all `parameters` of the model."""
    states, matrices = config.optimizer.name.facts.states, layer_matrix_parameters(config.model)
    return matrices * states(config.optimizer, True) + (parameters - matrices) * states(config.optimizer, False)


def _activation_bytes(config: RunConfig) -> float:
    """What all layers keep of one sequence. With `recompute`: every layer's input, and the inside of one layer."""
    model, train, full = config.model, config.train, config.precision.name.parameter_bytes
    T = longest_context(vars(train)) - train.mem_len
    inside = _layer_bytes(config, T, train.mem_len)
    if config.recompute:
        return model.n_layer * full * T * model.d_model + inside
    return model.n_layer * inside


def _layer_bytes(config: RunConfig, T: int, M: int) -> float:
    """What one layer keeps of one sequence; a mask of dropout has one byte per element."""
    model: ModelConfig = config.model
    full, half = config.precision.name.parameter_bytes, config.precision.name.is_half
    element = 2 if half else full  # bytes of an activation
    K, N, D, F = M + T, model.n_head, model.d_model, model.d_inner
    W = N * model.d_head
    of_key = element + (element + 1) * (model.dropatt > 0)  # a probability; after dropout, and the mask
    fused = config.attention is AttentionBackend.triton
    products = element * (2 * K * W + T * (3 * W + 3 * D))  # their inputs
    norms = 2 * full * T * D  # inputs of the two LayerNorms
    memory = element * M * D if half else 0  # cast to half precision
    probabilities = N * T * (K * element + 4 if fused else K * of_key)
    before = element * (model.activation is not Activation.relu)  # relu's gradient follows from its output
    feed_forward = T * F * (before + element + (element + 1) * (model.dropout > 0)) + 2 * T * D * (model.dropout > 0)
    return products + norms + memory + probabilities + feed_forward


def _logit_bytes(config: RunConfig, tokens: int, vocab_size: int) -> float:
    """What the softmax of `tokens` tokens holds at once: logits and probabilities of the largest cluster.

    On a GPU in half precision, probabilities take the place of the logits. A sampled softmax holds its logits three
    times: as computed, corrected, and without accidental hits.
    """
    full = config.precision.name.parameter_bytes
    if config.train.sampled_softmax:
        return full * 3 * tokens * config.train.sampled_softmax
    in_half = config.precision.name.is_half and config.hardware.gpus != 0
    at_once, bytes_each = (HALF_LOGITS_AT_ONCE, 2) if in_half else (LOGITS_AT_ONCE, 2 * full)
    edges = [0, *(config.data.cutoffs if config.model.adaptive else []), vocab_size]
    head, tails = edges[1] + len(edges) - 2, [end - begin for begin, end in pairwise(edges[1:])]
    clusters = [(float(tokens), head), *((TAIL_SHARE * tokens, words) for words in tails)]
    return bytes_each * max(min(n * words, max(at_once, words)) for n, words in clusters)
