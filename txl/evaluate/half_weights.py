"""A model whose matrices are in half precision already, for many segments with the same weights.

Under autocast every product casts its matrix. With fixed weights that is the same cast for every segment: base reads
and writes more than a gigabyte for it. The numbers are the same, bit by bit.
"""

import copy

import torch
from torch import nn

from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.model.attention import choose_backend
from txl.model.transformer import TransformerXL

FEWEST_HEADS = 64  # heads of all texts from which on the fused kernel has enough programs for a GPU


def with_half_weights(model: TransformerXL, device_type: str, batch_size: int = 1) -> TransformerXL:
    """The model as autocast, if it is on, would compute it: its linear layers and the softmax's tables are cast.

    The result has its own modules and shares all other parameters with the model: the embedding, whose vectors stay in
    full precision, and LayerNorm. Without autocast it is the model itself.

    `batch_size`: texts that are read at once. On a GPU that has enough of them the fused kernel computes attention.
    """
    if not torch.is_autocast_enabled(device_type):
        return model
    dtype = torch.get_autocast_dtype(device_type)
    halved = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    device = model.layers[0].attention.norm.weight.device
    for layer in halved.layers:
        if batch_size * layer.attention.n_head >= FEWEST_HEADS:
            layer.attention.backend = choose_backend(AttentionBackend.auto, device, Arithmetic.bf16)
    for module in halved.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    tables = list(model.softmax.weights) or list(model.embedding.tables)
    halved.softmax.cast_tables = [table.detach().to(dtype) for table in tables]
    return halved
