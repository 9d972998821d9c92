"""The fast path of a training step computes what the readable one does."""

import json
import os
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.in_process import train_here
from tests.support.models import model_config
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend
from txl.model import attention, dropout
from txl.model import linear as product
from txl.model.transformer import TransformerXL
from txl.optim import lamb
from txl.optim.clipping import clip_gradients
from txl.train import optimizer_step
from txl.train.model_with_loss import ModelWithLoss


def train(fast: bool, monkeypatch, steps: int = 20) -> list[float]:
    """Losses with LAMB, clipping and memory; the plain path is autograd's own from end to end."""
    torch.manual_seed(0)
    backend = AttentionBackend.sdpa if fast else AttentionBackend.eager
    model = TransformerXL(model_config(), 60, [10, 30], 16, backend).double().train()
    model.embedding.sparse_gradient &= fast
    params = list(model.parameters())
    optimizer = lamb.Lamb(params, 0.01)
    if not fast:
        monkeypatch.setattr(lamb, "updates_in_blocks", lambda params: False)
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
            clip_gradients(optimizer, params, 0.25)
        else:
            torch.nn.utils.clip_grad_norm_(params, 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_twenty_steps_in_float64_agree_to_1e_8(monkeypatch):
    fast, plain = train(True, monkeypatch), train(False, monkeypatch)
    assert plain[0] != plain[-1]
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=0)


class PlainLoss(ModelWithLoss):
    """The loss by autograd alone, over all logits at once."""

    def __init__(self, model):
        super().__init__(model)
        model.embedding.sparse_gradient = False

    def forward(self, input, target, mems, geometry, scale, groups, sample=None):
        hidden, mems = self.model(input, mems, geometry)
        nats = self.model.loss(hidden, target).sum()
        return scale * nats, nats.detach().double(), mems


@pytest.fixture
def plain(monkeypatch):
    """Call it, and runs in this process take the path that one reads rather than the one that is fast."""

    def switch() -> None:
        monkeypatch.setattr(optimizer_step, "ModelWithLoss", PlainLoss)
        monkeypatch.setattr(lamb, "updates_in_blocks", lambda params: False)
        monkeypatch.setattr(product, "has_avx512", lambda: False)
        for module in (dropout, attention):
            monkeypatch.setattr(module, "dropout", F.dropout)

    return switch


@pytest.mark.slow
@pytest.mark.skipif("TXL_DATA" not in os.environ, reason="needs TXL_DATA=FOLDER that holds wikitext-mini/")
def test_three_seeds_in_float32_with_dropout_end_within_three_hundredths_of_a_nat(plain, tmp_path, monkeypatch):
    """300 steps of wikitext-mini: sdpa, fused softmax, blocks of LAMB, oneDNN, shared random bits; and without."""
    text = Path(os.environ["TXL_DATA"]).resolve() / "wikitext-mini"
    monkeypatch.chdir(tmp_path)

    def final_loss(path: str, seed: int) -> float:
        run_dir = tmp_path / f"{path}-{seed}"
        backend = "eager" if path == "plain" else "sdpa"
        chosen = ["experiment=wikitext-mini", "train.max_step=300", "hardware=cpu", f"data.path={text}"]
        chosen += [f"attention={backend}"]
        train_here(*chosen, f"seed={seed}", f"run_dir={run_dir}")
        records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return {record["step"]: record["loss"] for record in records if record["kind"] == "valid"}[300]

    fast = [final_loss("fast", seed) for seed in (1, 2, 3)]
    plain()
    slow = [final_loss("plain", seed) for seed in (1, 2, 3)]
    means = statistics.mean(fast), statistics.mean(slow)
    print(f"\nvalid loss, nats: fast {fast}, mean {means[0]:.4f}; plain {slow}, mean {means[1]:.4f}")
    assert fast != slow
    assert means[0] == pytest.approx(means[1], abs=0.03)
