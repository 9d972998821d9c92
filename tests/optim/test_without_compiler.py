"""Optimizers compute as torch's own, and torch's compiler is not imported for them."""

import pytest
import torch

from tests.support.entry_points import run_code
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.optim.without_compiler import without_compiler

KINDS = {
    torch.optim.Adam: dict(lr=0.1, weight_decay=0.1, fused=True),
    torch.optim.AdamW: dict(lr=0.1, fused=True),
    torch.optim.SGD: dict(lr=0.1, momentum=0.9, fused=True),
    torch.optim.Adagrad: dict(lr=0.1),
    torch.optim.Muon: dict(lr=0.1),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_steps_and_state_are_torchs_own(kind):
    results = []
    for made in (kind, without_compiler(kind)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 4))
        optimizer = made([weight], **KINDS[kind])
        for step in range(4):
            if step == 2:  # as a resumed run
                state = optimizer.state_dict()
                optimizer = made([weight], **KINDS[kind])
                optimizer.load_state_dict(state)
            (weight.pow(2).sum() + weight.sin().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert weight.grad is None and weight.requires_grad and torch.is_grad_enabled()
        results.append([weight.detach(), *optimizer.state_dict()["state"][0].values()])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))


A_STEP_OF_EVERY_OPTIMIZER = """
import torch
from tests.support.optimizers import optimizer_config
from txl.config.optimizer import OptimizerName
from txl.optim.build import build_optimizer
for name in OptimizerName:
    matrix, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
    named = [("layers.0.feed_forward.weight", matrix), ("layers.0.feed_forward.bias", bias)]
    optimizer = build_optimizer(optimizer_config(name.name), named)
    (matrix @ bias).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
"""


def test_no_training_imports_torchs_compiler(tmp_path):
    options = [*TINY_RUN, *write_corpus(tmp_path), "train.max_step=8", "sample_tokens=0", "valid.enabled=false"]
    run = f"import sys; from txl.cli.main import main; assert main({['train', *options]!r}) == 0"
    assert run_code(f"{run}{A_STEP_OF_EVERY_OPTIMIZER}print('torch._dynamo' in sys.modules)", tmp_path) == "False"
