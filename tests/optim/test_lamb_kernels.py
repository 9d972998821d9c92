"""LAMB's kernels take the steps of its plain code, through Triton's interpreter; no GPU is needed."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.entry_points import PROJECT, environment
from tests.support.optimizers import optimizer_config
from tests.support.triton_interpreter import import_interpreted
from txl.optim import lamb
from txl.optim.build import build_optimizer

lamb_kernels = import_interpreted("txl.optim.lamb_kernels")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """In chunks so small that a tensor needs several."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(lamb_kernels, "CHUNK", 128)
    monkeypatch.setattr(lamb_kernels, "BLOCK", 128)


def steps(
    monkeypatch, kernels: bool, count: int, weight_decay: float, skipped: int | None = None
) -> list[torch.Tensor]:
    """All weights after these steps. One tensor begins with zeros, one is longer than its norm's bound."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size) * 3) for size in ((13, 15), (7,), (1,), (64,))]
    parameters.append(torch.nn.Parameter(torch.zeros(5)))
    named = [(f"p{i}", p) for i, p in enumerate(parameters)]
    optimizer = build_optimizer(optimizer_config("lamb", eps=1e-6, lr=0.02, weight_decay=weight_decay), named)
    with monkeypatch.context() as patch:
        if kernels:
            patch.setattr(lamb, "updates_in_blocks", lambda params: False)
            patch.setattr(lamb, "_kernels_apply", lambda params: True)
        for step in range(count):
            for p in parameters:
                p.grad = torch.sin(p.detach() * 7 + step)
            optimizer.gradient_factor = torch.tensor(0.7 if step % 2 else 1.0)
            optimizer.found_inf = torch.tensor([float(step == skipped)])
            optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("count, weight_decay", [(5, 0.1), (5, 0.0), pytest.param(50, 0.1, marks=pytest.mark.slow)])
def test_its_steps_equal_the_plain_ones(count, weight_decay, monkeypatch):
    expected, found = (steps(monkeypatch, kernels, count, weight_decay, skipped=2) for kernels in (False, True))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


def test_a_skipped_step_changes_nothing_and_repeated_steps_give_the_same_bits(monkeypatch):
    before, after = (steps(monkeypatch, True, count, 0.1, skipped=3) for count in (3, 4))
    assert all(map(torch.equal, before, after))
    assert all(map(torch.equal, after, steps(monkeypatch, True, 4, 0.1, skipped=3)))


class LargestNewTensor(TorchDispatchMode):
    """How many elements the largest tensor has that is made under it."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, x.numel())
        return result


def test_a_step_needs_no_room_for_its_updates(monkeypatch):
    """The estimate of memory counts weights, gradients and moments, and no more."""
    p = torch.nn.Parameter(torch.randn(24, 24))
    optimizer = build_optimizer(optimizer_config("lamb", eps=1e-6), [("p", p)])
    monkeypatch.setattr(lamb, "updates_in_blocks", lambda params: False)
    monkeypatch.setattr(lamb, "_kernels_apply", lambda params: True)
    found = []
    for _ in range(2):
        p.grad = torch.randn_like(p)
        with LargestNewTensor() as largest:
            optimizer.step()
        found.append(largest.most)
    assert found[0] == p.numel() > 10 * found[1]  # the first step makes the moments


@pytest.mark.slow
@pytest.mark.timeout(1000)  # a quarter of a minute where nothing else runs
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_of_lamb_and_softmax_compile_for_gpus_that_are_not_here(capability):
    command = [sys.executable, str(PROJECT / "tests" / "support" / "ahead_of_time.py"), capability, "lamb", "softmax"]
    env = environment(TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    sizes = [line.split()[1:] for line in done.stdout.splitlines()]
    assert len(sizes) == 5 and all(int(program) > 0 and int(shared) < 2**14 for program, shared in sizes)
