"""How much memory a training step takes on one device, from its configuration alone."""

from itertools import pairwise

from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.config.schema import RunConfig
from txl.config.training import longest_context
from txl.plan.parameter_count import layer_matrix_parameters, layer_parameters

# --------------------------------------------------------------------------- memory

TAIL_SHARE = 0.15  # at most, of all tokens, in one tail cluster of an adaptive softmax


LOGITS_AT_ONCE = 2**25  # adaptive.py's, which would import torch


def optimizer_states(config: RunConfig, parameters: int) -> int:
    """How many numbers the optimizer keeps for all `parameters` of the model."""
    states, matrices = config.optimizer.name.facts.states, layer_matrix_parameters(config.model)
    return matrices * states(config.optimizer, True) + (parameters - matrices) * states(config.optimizer, False)


def memory_terms(
    config: RunConfig, vocab_size: int, parameters: int, micro: int, local: int, world_size: int
) -> dict[str, float]:
    """Bytes on one device at the end of a forward pass, by what they are for.

    An estimate; attention=auto and sdpa count as eager.

    With b the micro batch, T = ext_len + tgt_len, K = mem_len + T, D, W = n_head * d_head, F = d_inner, N heads,
    a the bytes of an activation (2 in half precision, with the parameters' 4), and one byte for each of a mask's:

        weights      4 P, and 2 P of them cast where arithmetic is half
        gradients    4 P, twice with several processes (the buckets that are reduced); with accumulation twice for
                     all but the layers, because the softmax's are there before the backward pass
        optimizer    4 bytes for each number that the optimizer keeps: 8 P (LAMB, Adam), 4 P (Adagrad) ...
        activations  b L [ a (2 K W + T (3 W + 3 D)) + 8 T D         inputs of products; of the LayerNorms
                           + a mem_len D, where it is half           memories, cast
                           + N T K (a + dropatt (a + 1))             probabilities; triton: N T (K a + 4)
                           + T F (a + dropout (a + 1)) + 2 T D ]     feed-forward; masks
                     with `recompute`: b [L 4 T D + the insides of one layer, as above]
        logits       LOGITS_AT_ONCE, or b T (head + 1), in float32, and their probabilities; with a sampled softmax
                     b T sampled_softmax three times: as they come, corrected, without hits
        mems         (local batch) L max(mem_len, T) D 4: a view of the segment where that is long enough; with
                     swap_mem none on a GPU
    """
    model, train, arithmetic = config.model, config.train, config.precision.name
    full = 8 if arithmetic is Arithmetic.fp64 else 4
    half = arithmetic in (Arithmetic.bf16, Arithmetic.fp16)
    a, on_cpu = 2 if half else full, config.hardware.gpus == 0
    K = longest_context(vars(train))
    T, D, F, N, L = K - train.mem_len, model.d_model, model.d_inner, model.n_head, model.n_layer
    W = model.n_head * model.d_head
    fused = config.attention is AttentionBackend.triton
    dropped, attention_dropped = (a + 1) * (model.dropout > 0), (a + 1) * (model.dropatt > 0)
    per_layer = (
        a * (2 * K * W + T * (3 * W + 3 * D))
        + 2 * full * T * D
        + half * a * train.mem_len * D
        + N * T * (K * a + 4 if fused else K * (a + attention_dropped))
        + T * F * (a + dropped)
        + 2 * T * D * (model.dropout > 0)
    )
    edges = [0, *(config.data.cutoffs if model.adaptive else []), vocab_size]
    head, tails = edges[1] + len(edges) - 2, [end - begin for begin, end in pairwise(edges[1:])]
    tokens, limit = micro * train.tgt_len, LOGITS_AT_ONCE
    clusters = [(tokens, head), *((TAIL_SHARE * tokens, words) for words in tails)]
    logits = 2 * max(min(n * words, max(limit, words)) for n, words in clusters)
    if train.sampled_softmax:
        logits = 3 * tokens * train.sampled_softmax
    twice = parameters if world_size > 1 else 0
    twice += parameters - layer_parameters(model) if local > micro else 0
    layers = L * full * T * D + per_layer if config.recompute else L * per_layer
    return {
        "weights": parameters * (full + (2 if half else 0)),
        "gradients": (parameters + twice) * full,
        "optimizer": full * optimizer_states(config, parameters),
        "activations": micro * layers,
        "logits": full * logits,
        "mems": local * L * max(train.mem_len, T) * D * full if train.mem_len and (on_cpu or not train.swap_mem) else 0,
    }
