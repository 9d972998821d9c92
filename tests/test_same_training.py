"""The fast path of a training step computes what the readable one does."""

import torch

from tiny import model_config
from txl import optim
from txl.choices import AttentionBackend
from txl.config import Geometry
from txl.model import TransformerXL


def train(fast: bool, steps: int = 20) -> list[float]:
    """Losses with LAMB, clipping and memory; the plain path is autograd's own from end to end."""
    torch.manual_seed(0)
    backend = AttentionBackend.sdpa if fast else AttentionBackend.eager
    model = TransformerXL(model_config(), 60, [10, 30], 16, backend).double().train()
    model.embedding.sparse_gradient &= fast
    params = list(model.parameters())
    optimizer = optim.Lamb(params, 0.01)
    if not fast:
        optimizer._step_in_blocks = optimizer._step_together
    tokens = torch.multinomial(1 / torch.arange(1.0, 61), 4 * (8 * steps + 1), replacement=True).view(4, -1)
    mems, losses = [], []
    for step in range(steps):
        input, target = tokens[:, 8 * step : 8 * step + 8], tokens[:, 8 * step + 1 : 8 * step + 9]
        hidden, mems = model(input, mems, Geometry(8, 8))
        if fast:
            loss, _ = model.total_loss(hidden, target, 1 / 32)
        else:
            loss = model.loss(hidden, target).mean()
        loss.backward()
        if fast:
            optim.clip(optimizer, params, 0.25)
        else:
            torch.nn.utils.clip_grad_norm_(params, 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_twenty_steps_in_float64_agree_to_1e_8():
    plain, fast = train(fast=False), train(fast=True)
    assert plain[0] != plain[-1]
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=0)
