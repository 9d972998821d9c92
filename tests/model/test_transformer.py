"""The model does what the paper says."""

import itertools

import pytest
import torch

from tests.support.models import model_config
from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.model.transformer import TransformerXL

V, CUTOFFS = 50, [20, 35]
SCHEMES = list(Positions)
DISTANCE_SCHEMES = [Positions.relative, Positions.shaw, Positions.rotary]


def build(seed=0, max_distances=64, **changes) -> TransformerXL:
    torch.manual_seed(seed)
    model = TransformerXL(model_config(**changes), V, CUTOFFS, max_distances).double()
    with torch.no_grad():  # every parameter must matter
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens(B=2, T=24, seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", SCHEMES)
@pytest.mark.parametrize("pre_lnorm", [False, True])
def test_no_position_sees_the_future(positions, pre_lnorm):
    model = build(positions=positions, pre_lnorm=pre_lnorm)
    ids, geometry = tokens(B=1, T=8), Geometry(8, 8)
    _, mems = model(tokens(B=1, T=8, seed=2), [], geometry)
    for t in range(8):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % V
        before, after = model(ids, mems, geometry)[0], model(changed, mems, geometry)[0]
        torch.testing.assert_close(before[:, :t], after[:, :t], rtol=0, atol=1e-13)
        assert not torch.allclose(before[:, t:], after[:, t:])


@pytest.mark.parametrize("positions", DISTANCE_SCHEMES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"pre_lnorm": True, "untie_r": True, "div_val": 2}, {"value_residual": True, "n_layer": 3}],
    ids=["plain", "pre_lnorm", "value_residual"],
)
def test_reading_in_segments_with_memory_equals_reading_at_once(positions, changes):
    model = build(positions=positions, **changes)
    ids = tokens()
    whole, _ = model(ids, [], Geometry(24, 0))
    mems, parts = [], []
    for segment in ids.split(6, dim=1):
        hidden, mems = model(segment, mems, Geometry(6, 24))
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("positions", [Positions.absolute, Positions.absolute_per_layer])
def test_a_remembered_token_has_exactly_one_absolute_position(positions):
    """With one layer the memory holds embeddings: a segment after a memory equals the end of a longer segment."""
    model = build(positions=positions, n_layer=1)
    ids = tokens()
    whole, _ = model(ids, [], Geometry(24, 0))
    mems = []
    for segment in ids.split(8, dim=1):
        hidden, mems = model(segment, mems, Geometry(8, 24))
    torch.testing.assert_close(hidden, whole[:, -8:], rtol=1e-10, atol=1e-12)
    again, _ = model(ids[:, -8:], [mem[:, :16] for mem in mems], Geometry(8, 24))
    torch.testing.assert_close(again, hidden)  # reading does not change what is remembered


@pytest.mark.parametrize("positions", SCHEMES)
def test_same_length_looks_back_exactly_mem_len(positions):
    model = build(positions=positions, n_layer=1)
    geometry = Geometry(6, 5, same_length=True)
    ids = tokens(B=1, T=6)
    _, mems = model(tokens(B=1, T=6, seed=3), [], geometry)
    t = 5  # sees distances 0 ... 5, that is positions 0 ... 5 of the segment and no memory
    moved = [mem + 1.0 for mem in mems]
    before, after = model(ids, mems, geometry)[0], model(ids, moved, geometry)[0]
    torch.testing.assert_close(before[:, t], after[:, t], rtol=0, atol=1e-13)
    assert not torch.allclose(before[:, t - 1], after[:, t - 1])


def test_clamped_distances_are_told_apart_no_more():
    """Beyond clamp_len all distances count as one: exchanging two far memories changes nothing."""
    model = build(n_layer=1)
    ids, geometry = tokens(B=1, T=2), Geometry(2, 10, clamp_len=4)
    _, mems = model(tokens(B=1, T=10, seed=4), [], Geometry(10, 10))
    swapped = [mem[:, [1, 0, *range(2, 10)]] for mem in mems]
    torch.testing.assert_close(model(ids, mems, geometry)[0], model(ids, swapped, geometry)[0])
    unclamped = Geometry(2, 10)
    assert not torch.allclose(model(ids, mems, unclamped)[0], model(ids, swapped, unclamped)[0])


@pytest.mark.parametrize("mem_len, ext_len, T", list(itertools.product([0, 3, 8, 20], [0, 2], [2, 6])))
def test_memory_is_the_mem_len_positions_that_end_ext_len_before_the_end(mem_len, ext_len, T):
    model = build(n_layer=1)
    geometry = Geometry(T - ext_len, mem_len, ext_len)
    mems = []
    for segment in tokens(B=1, T=4 * T).split(T, dim=1):
        embedded = model.embedding(segment)
        before = mems[0] if mems else embedded[:, :0]
        _, mems = model(segment, mems, geometry)
        everything = torch.cat([before, embedded], dim=1)
        end = everything.shape[1] - ext_len
        expected = everything[:, max(0, end - mem_len) : end]
        if mem_len == 0:
            assert mems == []
        else:
            torch.testing.assert_close(mems[0], expected)
            assert not mems[0].requires_grad


@pytest.mark.parametrize("div_val, d_embed, tie_weight", list(itertools.product([1, 2], [None, 8], [True, False])))
def test_losses_are_the_log_probabilities_of_the_targets(div_val, d_embed, tie_weight):
    model = build(div_val=div_val, d_embed=d_embed, tie_weight=tie_weight)
    hidden = torch.randn(2, 7, 16, dtype=torch.float64)
    target = tokens(B=2, T=7)
    log_prob = model.log_prob(hidden.flatten(0, 1))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(14, dtype=torch.float64))
    expected = -log_prob.gather(1, target.view(-1, 1)).view(2, 7)
    torch.testing.assert_close(model.loss(hidden, target), expected)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = build(seed=1), build(seed=1), build(seed=2)
    pairs = zip(first.parameters(), second.parameters(), other.parameters(), strict=True)
    for a, b, c in pairs:
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("positions", SCHEMES)
def test_every_parameter_gets_a_gradient(positions):
    model = build(positions=positions, max_distances=12)
    _, mems = model(tokens(B=4, T=6), [], Geometry(6, 6))
    hidden, _ = model(tokens(B=4, T=6, seed=5), mems, Geometry(6, 6))
    model.loss(hidden, torch.arange(24).view(4, 6) * 2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
