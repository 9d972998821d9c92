"""Small models, and their configurations."""

import torch

from txl.checkpoint.reference_format import REFERENCE_INIT
from txl.config.model import AttentionBackend, ModelConfig, Positions
from txl.model.transformer import TransformerXL

V, CUTOFFS = 50, [20, 35]


def model_config(**changes) -> ModelConfig:
    """Two layers of width 16; `changes`: other values of its keys."""
    values = dict(
        name="tiny",
        n_layer=2,
        n_head=2,
        d_model=16,
        d_head=8,
        d_inner=32,
        dropout=0.0,
        dropatt=0.0,
        positions=Positions.relative,
        pre_lnorm=False,
        untie_r=False,
        adaptive=True,
        div_val=1,
        tie_weight=True,
        tie_projs=[False, True],
    )
    values |= REFERENCE_INIT | dict(init_std=0.1, proj_init_std=0.1)
    return ModelConfig(**values | changes)


def build(seed=0, max_distances=64, backend=AttentionBackend.eager, **changes) -> TransformerXL:
    """A model in float64 for evaluation, over V tokens, with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    model = TransformerXL(model_config(**changes), V, CUTOFFS, max_distances, backend).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
