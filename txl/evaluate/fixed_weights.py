"""A model whose matrices are prepared once, for many segments with the same weights.

Under autocast every product casts its matrix: base reads and writes more than a gigabyte for every segment. And oneDNN,
which computes products on CPUs (txl/model/linear.py), brings every matrix into its own order before it multiplies: for
a softmax over 160,000 words and eight tokens that takes as long as the product. With fixed weights both are the same
each time. The numbers are the same, bit by bit, on the machines where this was tried.
"""

import copy

import torch
from torch import Tensor, nn

from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.model.attention import choose_backend
from txl.model.linear import has_avx512, pack
from txl.model.transformer import TransformerXL

FEWEST_HEADS = 64  # heads of all texts from which on the fused kernel has enough programs for a GPU
PACKED = (torch.float32, torch.bfloat16)  # what oneDNN has an order of its own for, with AVX-512


def with_fixed_weights(model: TransformerXL, batch_size: int = 1, only_attention: bool = False) -> TransformerXL:
    """The model with the matrices of its layers and of its softmax as the products take them.

    Under autocast they are cast; on a CPU with AVX-512 they are packed for oneDNN. The result has its own modules and
    shares all other parameters with the model: the embedding, whose vectors stay in full precision, and LayerNorm. It
    cannot be trained or saved. Where nothing can be prepared it is the model itself.

    Args:
        model: the weights. They stay as they are, and in memory.
        batch_size: texts that are read at once. On a GPU that has enough of them the fused kernel computes attention.
        only_attention: leave the feed-forward layers and the softmax as they are, to be trained.

    Returns:
        The model to read with.
    """
    norm = model.layers[0].attention.norm.weight  # always in full precision
    kind = norm.device.type
    is_half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if is_half else norm.dtype
    packs = kind == "cpu" and has_avx512() and dtype in PACKED
    if not is_half and not packs:
        return model

    def prepared(matrix: Tensor) -> Tensor:
        matrix = matrix.detach().to(dtype)
        return pack(matrix) if packs else matrix

    fixed = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    attentions = [module for layer in fixed.layers for module in layer.attention.modules()]
    for module in attentions if only_attention else fixed.modules():
        if isinstance(module, nn.Linear):
            weight, bias = prepared(module.weight), module.bias
            del module.weight, module.bias  # no parameters any more
            vars(module).update(weight=weight, bias=None if bias is None else bias.detach().to(dtype))
    if not only_attention:
        fixed.softmax.fix_weights(fixed.embedding, prepared)
    for layer in fixed.layers:
        if is_half and batch_size * layer.attention.n_head >= FEWEST_HEADS:
            layer.attention.backend = choose_backend(AttentionBackend.auto, norm.device, Arithmetic.bf16)
    return fixed
