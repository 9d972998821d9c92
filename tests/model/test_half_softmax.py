"""The loss over half-precision logits against float64, through Triton's interpreter; no GPU is needed."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.models import model_config
from tests.support.triton_interpreter import import_interpreted
from txl.model import cluster_loss
from txl.model.adaptive_embedding import add_rows
from txl.model.clusters import FurtherTargets
from txl.model.transformer import TransformerXL

half_softmax = import_interpreted("txl.model.half_softmax")

# The interpreter says so of the numbers beyond the columns, which the kernel reads and does not use.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "columns, n, at_once", [(203, 37, 2**29), (203, 37, 256 * 10), (64, 3, 2**29), (9001, 2, 2**29)]
)
def test_loss_and_every_gradient_equal_float64(columns, n, at_once, dtype, weight, monkeypatch):
    monkeypatch.setattr(half_softmax, "HALF_LOGITS_AT_ONCE", at_once)
    torch.manual_seed(columns)
    x, w, b = torch.randn(n, 16).to(dtype), (torch.randn(columns, 16) / 4).to(dtype), torch.randn(columns)
    target = torch.randint(columns, (n,))
    unset = torch.full((columns, 16), torch.nan), torch.full((columns,), torch.nan)  # what they held must not count
    second = torch.randint(-1, columns, (n,))
    second[:1] = -1  # no second target
    further = FurtherTargets(second, weight) if weight else None
    nats, grad_x = half_softmax.loss_over_half_logits(x, target, w, b, unset, 0.25, further)
    exact = [tensor.double().requires_grad_() for tensor in (x, w, b)]
    logits = exact[0] @ exact[1].t() + exact[2]
    right = F.cross_entropy(logits, target, reduction="sum")
    of_second = F.cross_entropy(logits, second, reduction="sum", ignore_index=-1)
    (0.25 * (right + weight * of_second)).backward()
    rounding = 2e-2 if dtype == torch.bfloat16 else 3e-3
    torch.testing.assert_close(nats, right.detach(), rtol=rounding, atol=1e-3)
    for found, expected in zip((grad_x, *unset), (tensor.grad for tensor in exact), strict=True):
        assert (found.double() - expected).norm() < rounding * expected.norm()
    again, nothing = half_softmax.loss_over_half_logits(x, target, w, b, None, 1.0)
    assert torch.equal(again, nats) and nothing is None


def test_small_probabilities_are_kept_in_fp16():
    """Of 20,000 words that are as rare as 1e-8 each, none lost its gradient."""
    x, w = torch.ones(1, 16).half(), torch.zeros(20_000, 16).half()
    bias = torch.zeros(20_000)
    bias[0] = 18.0
    grads = torch.empty(20_000, 16), torch.empty(20_000)
    half_softmax.loss_over_half_logits(x, torch.tensor([0]), w, bias, grads, 1.0)
    exact = bias.double().softmax(0)[1].item()
    assert exact < 3e-8
    assert abs(grads[1][1:].double().mean().item() / exact - 1) < 0.2


DIVIDED = dict(div_val=2, tie_projs=[False, True, False])


@pytest.mark.parametrize(
    "changes, n_steps",
    [
        (dict(), 10),
        pytest.param(dict(), 50, marks=pytest.mark.slow),
        pytest.param(DIVIDED, 50, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training_steps_are_those_of_the_plain_path(changes, n_steps, monkeypatch):
    """The whole model under autocast, each step of both from the other path's forward and backward pass."""
    curves = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = TransformerXL(model_config(n_layer=1, **changes), 50, [10, 20], 16).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        generator, curve = torch.Generator().manual_seed(1), []
        with monkeypatch.context() as patch:
            if fast:
                patch.setattr(cluster_loss, "_uses_half_logits", lambda x: x.dtype in cluster_loss.HALF)
            for _ in range(n_steps):
                input = torch.randint(50, (1, 6), generator=generator)
                with torch.autocast("cpu", torch.float16):
                    states = model.embedding(input)
                    total, nats = model.total_loss(states, input, 1 / 6, is_root=True)
                total.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                curve.append(nats.item() / 6)
        curves.append(torch.tensor(curve))
    assert n_steps < 50 or curves[0][-10:].mean() < curves[0][:10].mean() - 0.1
    assert (curves[0] - curves[1]).abs().max() < 5e-3


@pytest.mark.parametrize("changes", [dict(), DIVIDED, dict(adaptive=False)], ids=str)
def test_the_gradient_of_some_words_is_that_of_all_without_the_others(changes, monkeypatch):
    monkeypatch.setattr(cluster_loss, "_uses_half_logits", lambda x: x.dtype in cluster_loss.HALF)
    torch.manual_seed(0)
    model = TransformerXL(model_config(n_layer=1, **changes), 50, [10, 20], 16)
    input, words, found = torch.randint(50, (1, 6)), torch.tensor([2, 9, 10, 31, 49]), []
    for only in (None, words):
        with torch.autocast("cpu", torch.float16):
            model.total_loss(torch.ones(1, 6, 16), input, is_root=True, words=only)[0].backward()
        found.append([table.grad for table in model.embedding.tables])
        model.zero_grad()
    begin = 0
    for whole, some in zip(*found, strict=True):
        rows = [word - begin for word in words.tolist() if 0 <= word - begin < len(whole)]
        assert some.is_sparse and some.coalesce().indices()[0].tolist() == rows
        torch.testing.assert_close(some.coalesce().values(), whole[rows])
        begin += len(whole)


def test_rows_are_added_in_a_fixed_order_without_a_copy():
    """On the meta device, which takes the GPU's way; the CPU's sum has the same value."""
    table, ids, rows = torch.zeros(5, 3), torch.tensor([1, 4, 1]), torch.ones(3, 3)
    expected = table.clone().index_put_((ids,), rows, accumulate=True)
    assert add_rows(table, ids, rows) is table
    assert torch.equal(table, expected)
    meta = torch.zeros(5, 3, device="meta")
    assert add_rows(meta, ids.to("meta"), rows.to("meta")) is meta
