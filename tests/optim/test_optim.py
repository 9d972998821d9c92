"""Optimizers step as defined, and the learning rate is a pure function of the step."""

import copy
import math

import pytest
import torch

from tests.support.optimizers import optimizer_config
from txl.config.optimizer import OptimizerName
from txl.config.scheduler import SchedulerConfig, SchedulerName
from txl.errors import ConfigError
from txl.optim import lamb
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients
from txl.optim.groups import group_parameters
from txl.optim.schedule import LearningRate, Plateau


def schedule(name: str, **changes) -> SchedulerConfig:
    values = dict(
        name=SchedulerName[name],
        warmup_step=10,
        max_step=None,
        eta_min=0.1,
        decay_rate=0.5,
        patience=0,
        lr_min=0.0,
        first_update_at_base_lr=True,
    )
    return SchedulerConfig(**values | changes)


def enumerated(params) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters with names."""
    return [(f"weight{i}", p) for i, p in enumerate(params)]


def rate(step, config, plateau=None):
    return LearningRate(config, 1.0, 100, plateau or Plateau()).at(step)


def rate_of_update(updates_done, config):
    return LearningRate(config, 1.0, 100, Plateau()).of_update(updates_done)


def test_cosine_warms_up_linearly_and_ends_at_eta_min():
    config = schedule("cosine")
    assert [rate(s, config) for s in (1, 5, 9)] == pytest.approx([0.1, 0.5, 0.9])
    assert rate(10, config) == 1.0
    assert rate(55, config) == pytest.approx(0.55)  # half way: the mean of both ends
    assert rate(100, config) == pytest.approx(0.1)
    assert rate(150, config) == pytest.approx(0.1)


def test_linear_falls_by_the_same_amount_each_step_and_ends_at_eta_min():
    config = schedule("linear")
    assert [rate(s, config) for s in (5, 10, 55, 100, 150)] == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1])
    assert rate(20, config) - rate(21, config) == pytest.approx(0.9 / 90)


def test_the_first_update_runs_at_the_base_rate_as_in_the_reference():
    config = schedule("cosine")
    assert [rate_of_update(n, config) for n in (0, 1, 5)] == pytest.approx([1.0, 0.1, 0.5])
    usual = schedule("cosine", first_update_at_base_lr=False)
    assert [rate_of_update(n, usual) for n in (0, 1, 5)] == pytest.approx([0.1, 0.2, 0.6])


def test_inverse_square_root_peaks_at_the_end_of_the_warmup():
    config = schedule("inv_sqrt", warmup_step=16)
    assert rate(16, config) == pytest.approx(0.25)
    assert rate(4, config) == pytest.approx(4 / 64)
    assert rate(64, config) == pytest.approx(1 / 8)
    assert rate(0, schedule("inv_sqrt", warmup_step=0)) == 1.0


def test_constant_stays_after_its_warmup():
    assert [rate(s, schedule("constant")) for s in (5, 10, 10_000)] == pytest.approx([0.5, 1.0, 1.0])


def test_plateau_halves_after_more_than_patience_bad_validations():
    config, plateau = schedule("dev_perf", patience=1, lr_min=0.2), Plateau()
    rates = []
    for loss in (3.0, 2.0, 2.1, 2.2, 2.3, 2.3, 1.0, 1.1, 1.1, 1.1, 1.1):
        plateau.update(loss, config)
        rates.append(rate(50, config, plateau=plateau))
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("name", ["cosine", "linear", "inv_sqrt", "constant"])
def test_other_schedules_survive_validations_that_get_worse(name):
    config, plateau = schedule(name, decay_rate=None, patience=None, lr_min=None), Plateau()
    for loss in (2.0, 2.1, 2.2):
        plateau.update(loss, config)
    assert plateau == Plateau()


@pytest.mark.parametrize("name", [n.value for n in OptimizerName])
def test_every_optimizer_learns_a_line(name):
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(4, 1)), torch.nn.Parameter(torch.zeros(1))
    x, truth = torch.randn(64, 4), torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    optimizer = build_optimizer(optimizer_config(name, lr=0.1), [("layers.0.weight", weight), ("layers.0.bias", bias)])
    first = None
    for _ in range(200):
        loss = ((x @ weight + bias - x @ truth) ** 2).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_lamb_leaves_no_trace_of_a_parameter_without_gradient():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(optimizer_config("lamb"), [("weight", weight)])
    optimizer.step()
    assert torch.equal(weight, torch.ones(3)) and not optimizer.state


def test_lamb_state_survives_a_round_trip():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 5)) for _ in range(2)]
    first, second = (build_optimizer(optimizer_config("lamb"), [("weight", w)]) for w in weights)
    with torch.no_grad():
        weights[1].copy_(weights[0])
    gradients = torch.randn(4, 5, 5)
    for g in gradients[:2]:
        weights[0].grad = g
        first.step()
    with torch.no_grad():
        weights[1].copy_(weights[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for weight, optimizer in zip(weights, (first, second), strict=True):
        for g in gradients[2:]:
            weight.grad = g.clone()
            optimizer.step()
    assert torch.equal(*weights)
    assert math.isfinite(weights[0].sum().item())


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lamb_in_blocks_equals_lamb_over_all_tensors_at_once(decay, monkeypatch):
    monkeypatch.setattr(lamb, "BLOCK", 7)
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 5), (7,), (1,), (4, 7))]
    second = copy.deepcopy(first)
    blocks, together = lamb.Lamb(first, 0.01, weight_decay=decay), lamb.Lamb(second, 0.01, weight_decay=decay)
    for _ in range(3):
        for p, q in zip(first, second, strict=True):
            p.grad = torch.randn_like(p) * 10
            q.grad = p.grad.clone()
        for one, params in ((blocks, first), (together, second)):
            clip_gradients(one, params, 0.25)
            with monkeypatch.context() as patch:
                if one is together:
                    patch.setattr(lamb, "updates_in_blocks", lambda params: False)
                one.step()
        for p, q in zip(first, second, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["lamb", "adam"])
@pytest.mark.parametrize("of", [3, 2])
def test_clipping_shares_its_norm_and_equals_torch(name, of):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(3)]
    theirs = copy.deepcopy(ours)
    one, other = (build_optimizer(optimizer_config(name), enumerated(params)) for params in (ours, theirs))
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    norm = clip_gradients(one, ours[:of], 0.25)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs[:of], 0.25))
    one.step()
    other.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("together", [False, True])
def test_lamb_skips_an_update_whose_gradients_overflowed_and_leaves_the_moments(together, monkeypatch):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 5))
    optimizer = build_optimizer(optimizer_config("lamb", weight_decay=0.1), [("weight", weight)])
    if together:  # as on a GPU, where the host does not wait to know whether the update is skipped
        monkeypatch.setattr(lamb, "updates_in_blocks", lambda params: False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflow in (False, True):
        before = copy.deepcopy([weight.data, optimizer.state_dict()["state"]])
        scaler.scale((weight * torch.randn(5, 5)).sum()).backward()
        if overflow:
            weight.grad[0, 0] = math.inf
        scaler.unscale_(optimizer)
        clip_gradients(optimizer, [weight], 0.25)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = torch.equal(before[0], weight.data)
        assert same is overflow
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1], rtol=0, atol=0)
    assert scaler.get_scale() == 4.0


# --------------------------------------------------------------------------- groups with their own rate


@pytest.mark.parametrize("name", ["lamb", "adam", "sgd", "adagrad"])
def test_without_lr_scale_the_state_has_one_group_and_no_new_entries(name):
    """Checkpoints of earlier versions load, and look the same."""
    torch_class = {"lamb": lamb.Lamb, "adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    params = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    (group,) = build_optimizer(optimizer_config(name), enumerated(params)).state_dict()["param_groups"]
    (expected,) = torch_class[name](params, lr=0.01).state_dict()["param_groups"]
    assert group.keys() == expected.keys() and group["params"] == [0, 1]


def test_parameters_are_grouped_by_the_first_pattern_that_matches_their_name():
    names = "embedding.tables.0 layers.0.norm.bias layers.1.norm.bias layers.1.qkv.weight softmax.biases.0".split()
    named = [(name, torch.zeros(1)) for name in names]
    groups = group_parameters({"layers.1.*": 0.5, "*.bias": 2.0, "softmax.biases.?": 0.0}, named)
    assert {group.name: (group.lr_scale, [p.name for p in group.parameters]) for group in groups} == {
        "layers.1.*": (0.5, names[2:4]),
        "*.bias": (2.0, names[1:2]),
        "softmax.biases.?": (0.0, names[4:]),
        "others": (1.0, names[:1]),
    }


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"optimizer\.lr_scale: embeding\.\* matches no parameter"):
        group_parameters({"embeding.*": 0.5}, [("embedding.tables.0", torch.zeros(1))])
