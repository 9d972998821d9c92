import pytest
import torch

from txl.model.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_elements_vanish_with_the_probability_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    n = 1_000_003  # no multiple of four
    out = dropout(torch.ones(n, dtype=dtype), p)
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5 + 2**-17)
    kept = out[out != 0].unique().tolist()
    assert kept == [pytest.approx(1 / (1 - p), rel=1e-2 if dtype is torch.bfloat16 else 1e-3)]
    assert out.dtype == dtype


def test_neighbours_are_dropped_independently():
    """Four share a random number, but none of its bits: all sixteen patterns come as often as they should."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.25) == 0).view(-1, 4)
    found = torch.bincount((dropped * torch.tensor([1, 2, 4, 8])).sum(1), minlength=16) / len(dropped)
    for pattern, share in enumerate(found.tolist()):
        expected = 0.25 ** pattern.bit_count() * 0.75 ** (4 - pattern.bit_count())
        assert share == pytest.approx(expected, abs=5 * (expected / len(dropped)) ** 0.5)


def test_the_gradient_goes_where_the_value_went():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.3)
    out.sum().backward()
    torch.testing.assert_close(out, x * x.grad)
    assert torch.equal(x.grad == 0, out == 0) and len(x.grad.unique()) == 2


def test_the_same_seed_drops_the_same_and_evaluation_drops_nothing():
    x, layer = torch.ones(2, 333), Dropout(0.5)
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert layer.eval()(x) is x and Dropout(0.0)(x) is x
