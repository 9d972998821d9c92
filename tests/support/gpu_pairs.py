"""The step of tests/gpu_check.py that computes the same in two ways: how far both are apart, and what each takes."""

import copy

import torch

from tests.support.gpu_correctness import relative_error
from tests.support.gpu_rows import Rows
from tests.support.gpu_speed import seconds_of
from tests.support.gpu_trainer import clean_up, device_of
from txl.optim import batched_muon


def pairs(rows: Rows) -> None:
    """Each pair on its own; an error in one is a row."""
    for compare in (muon,):
        with rows.guarded(what=compare.__name__):
            compare(rows)
        clean_up()


def muon(rows: Rows) -> None:
    """Matrices of one shape together, beside torch's own steps: how far the weights went apart."""
    size, count = (8, 2) if rows.tiny else (512, 16)
    for name, shape in {"square": (size, size), "wide": (size, 4 * size), "tall": (4 * size, size)}.items():
        torch.manual_seed(0)
        ours = [torch.nn.Parameter(torch.randn(shape, device=device_of(rows.tiny)) * 0.02) for _ in range(count)]
        theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
        options = {"lr": 0.01, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
        own, torchs = batched_muon.BatchedMuon(ours, **options), torch.optim.Muon(theirs, **options)
        for _ in range(3 if rows.tiny else 50):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            own.step()
            torchs.step()
        moved = zip(ours, theirs, before, strict=True)
        error = max(relative_error(a.detach() - start, b.detach() - start) for a, b, start in moved)
        rows.add(what="muon", shape=name, matrices=count, error=error, ok=error < 0.02,
                 ms=1e3 * seconds_of(own.step), plain_ms=1e3 * seconds_of(torchs.step))  # fmt: skip
