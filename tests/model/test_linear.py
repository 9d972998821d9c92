"""Products by oneDNN are those of torch, and so are their gradients. They are tried without AVX-512, too."""

import pytest
import torch
import torch.nn.functional as F

from txl.model import linear as product
from txl.model.linear import Linear, linear, pack


@pytest.fixture
def onednn(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(product, "has_avx512", lambda: True)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_outputs_and_gradients_are_those_of_torch(onednn, shape, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 12, requires_grad=True), torch.randn(9, 12, requires_grad=True)
    leaves = [x, weight, *([torch.randn(9, requires_grad=True)] if with_bias else [])]
    grad = torch.randn(*shape, 9)
    expected = F.linear(*leaves)
    wanted = torch.autograd.grad(expected, leaves, grad)
    found = linear(*leaves)
    assert (type(found.grad_fn).__name__ == "_OneDnnLinearBackward") == (x.numel() > 0)  # it knows no empty matrices
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, leaves, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_views_need_no_copy(onednn):
    """Transposed matrices and slices of a larger one, as the softmax has them."""
    torch.manual_seed(0)
    a, b = torch.randn(30, 20), torch.randn(40, 30)
    torch.testing.assert_close(linear(a.t(), b), a.t() @ b.t())
    torch.testing.assert_close(linear(a[3:9, 5:].t(), b[:, 10:16]), a[3:9, 5:].t() @ b[:, 10:16].t())
    x = torch.randn(3, 4, 30).transpose(0, 1)
    torch.testing.assert_close(linear(x, b), F.linear(x, b))
    same = torch.ones(()).expand(5, 40)  # the gradient of a sum
    torch.testing.assert_close(linear(same, b.t()), same @ b)
    torch.testing.assert_close(linear(same.t(), torch.eye(5)), same.t() @ torch.eye(5))


def test_only_what_needs_a_gradient_gets_one(onednn):
    layer, x = Linear(6, 4), torch.randn(3, 6)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and x.grad is None
    frozen, x = Linear(6, 4).requires_grad_(False), torch.randn(3, 6, requires_grad=True)
    frozen(x).sum().backward()
    assert frozen.weight.grad is None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_stay_with_torch(onednn, dtype):
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    assert type(linear(x, torch.randn(4, 6, dtype=dtype)).grad_fn).__name__ != "_OneDnnLinearBackward"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # TorchScript stays as a runtime
def test_autocast_and_traced_programs_stay_with_torch(onednn):
    layer, x = Linear(6, 4), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert "mkldnn" not in str(torch.jit.trace(layer, x).inlined_graph)
    assert "mkldnn" not in str(torch.export.export(layer, (x,)).graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (0,), (2, 0), (130,)], ids=str)
def test_a_packed_weight_multiplies_as_the_plain_one(onednn, dtype, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 12), torch.randn(9, 12).to(dtype), torch.randn(9).to(dtype)
    found = linear(x, pack(weight), bias)
    torch.testing.assert_close(found, F.linear(x.to(dtype), weight, bias))
