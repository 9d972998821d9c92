"""A model whose matrices are in half precision already, for many segments with the same weights.

Under autocast every product casts its matrix. With fixed weights that is the same cast for every segment: base reads
and writes more than a gigabyte for it. The numbers are the same, bit by bit.
"""

import copy

import torch
from torch import nn

from txl.model.transformer import TransformerXL


def with_half_weights(model: TransformerXL, device_type: str) -> TransformerXL:
    """The model as autocast, if it is on, would compute it: its linear layers and the softmax's tables are cast.

    The result has its own modules and shares all other parameters with the model: the embedding, whose vectors stay in
    full precision, and LayerNorm. Without autocast it is the model itself.
    """
    if not torch.is_autocast_enabled(device_type):
        return model
    dtype = torch.get_autocast_dtype(device_type)
    halved = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for module in halved.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    tables = list(model.softmax.weights) or list(model.embedding.tables)
    halved.softmax.cast_tables = [table.detach().to(dtype) for table in tables]
    return halved
