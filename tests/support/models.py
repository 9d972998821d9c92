"""Small models in float64."""

import torch

from tests.support.tiny import model_config
from txl.config.model import AttentionBackend
from txl.model.transformer import TransformerXL

V, CUTOFFS = 50, [20, 35]


def build(seed=0, max_distances=64, backend=AttentionBackend.eager, **changes) -> TransformerXL:
    torch.manual_seed(seed)
    model = TransformerXL(model_config(**changes), V, CUTOFFS, max_distances, backend).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
