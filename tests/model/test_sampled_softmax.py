"""The sampled softmax: what is drawn, what the loss approaches, and that rows which nobody drew stay as they are."""

import math
from functools import partial

import pytest
import torch

from tests.support.models import model_config
from tests.support.optimizers import optimizer_config
from txl.model.sampled_softmax import (
    SampledWords,
    WordSampler,
    log_uniform_probability,
    prepare_sampled_softmax,
    sampled_loss,
)
from txl.model.transformer import TransformerXL
from txl.optim.build import build_optimizer
from txl.optim.clipping import clip_gradients
from txl.system.distributed import average_sparse_gradient

V = 60


def build(count=None, vocab_size=V, **changes) -> tuple[TransformerXL, WordSampler, list]:
    torch.manual_seed(1)
    model = TransformerXL(model_config(adaptive=False, **changes), vocab_size, [], 16).double().train()
    torch.nn.init.normal_(model.softmax.biases[0])
    return model, *prepare_sampled_softmax(model, count, seed=3)


def batch(vocab_size=V) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(2, 15, 16, dtype=torch.float64, requires_grad=True), torch.randint(vocab_size, (2, 15))


# --------------------------------------------------------------------------- what is drawn


def test_single_words_are_drawn_log_uniformly():
    expected = log_uniform_probability(torch.arange(V, dtype=torch.float64), V)
    assert expected.sum().item() == pytest.approx(1) and expected[0] / expected[3] == pytest.approx(
        math.log(2) / math.log(5 / 4)
    )
    sampler, draws = WordSampler(V, 1, seed=0), 20_000
    drawn = torch.cat([sampler.draw(step).words for step in range(draws)]).bincount(minlength=V)
    chi_square = ((drawn - draws * expected) ** 2 / (draws * expected)).sum().item()
    assert chi_square < 110  # 59 degrees of freedom: above that once in 20,000 generators


def test_drawn_words_are_distinct_and_stand_for_all_without_bias():
    sampler, value = WordSampler(V, 12, seed=0), torch.linspace(-1, 3, V).exp().double()
    samples = [sampler.draw(step) for step in range(4000)]
    assert all(len(sample.words.unique()) == 12 for sample in samples)
    sums = torch.stack([(value[s.words] / s.log_inclusion_probability(s.words).exp()).sum() for s in samples])
    assert abs(sums.mean() - value.sum()) < 4 * sums.std() / len(sums) ** 0.5
    assert sums.std() > 0.1 * value.sum()


def test_what_is_drawn_is_a_function_of_seed_and_step_alone():
    one, other = WordSampler(V, 12, seed=5), WordSampler(V, 12, seed=5)
    forward = [one.draw(step) for step in range(4)]
    for step in (3, 0, 2, 1):
        again = other.draw(step)
        assert torch.equal(again.words, forward[step].words) and again.time == forward[step].time
    assert not torch.equal(forward[0].words, forward[1].words)
    assert not torch.equal(forward[0].words, WordSampler(V, 12, seed=6).draw(0).words)


# --------------------------------------------------------------------------- the loss

SHAPES = [dict(), dict(tie_weight=False), dict(d_embed=12), dict(d_embed=12, tie_projs=[True], tie_weight=False)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_of_all_words_is_the_exact_softmax_with_every_gradient(shape):
    model, sampler, tables = build(V, **shape)
    hidden, target = batch()
    input = target.flip(1)
    losses, gradients = [], []
    for sample in (None, sampler.draw(0)):
        h = hidden + model.embedding(input)
        loss = model.total_loss if sample is None else partial(sampled_loss, model, sample=sample)
        total, nats = loss(h, target, scale=0.3)
        total.backward()
        losses.append((total.detach(), nats))
        named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert sample is None or all(table.grad.is_sparse for table in tables)
        gradients.append({name: grad.to_dense() for name, grad in (named | {"hidden": hidden.grad}).items()})
        hidden.grad = None
        model.zero_grad(set_to_none=True)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_the_loss_approaches_the_exact_one_as_more_words_are_drawn():
    model, _, _ = build()
    hidden, target = batch()
    exact = model.total_loss(hidden, target)[1].item()
    away = []
    for count in (6, 20, 40, 55, V):
        sampler = WordSampler(V, count, seed=3)
        nats = [sampled_loss(model, hidden, target, 1.0, sampler.draw(step))[1].item() for step in range(30)]
        away.append(abs(sum(nats) / len(nats) - exact) / exact)
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.2 and away[3] < 0.05 and away[4] < 1e-12


def test_a_target_that_was_drawn_is_no_negative_of_itself():
    model, _, _ = build()
    hidden = batch()[0][:, :1]
    target, words = torch.tensor([[7], [7]]), torch.tensor([2, 7, 11])
    with_it, without = SampledWords(words, 3.0, V), SampledWords(words[words != 7], 3.0, V)
    (one, _), (other, _) = (sampled_loss(model, hidden, target, 1.0, sample) for sample in (with_it, without))
    torch.testing.assert_close(one, other)
    alone, _ = sampled_loss(model, hidden, target, 1.0, SampledWords(torch.tensor([7]), 3.0, V))
    alone.backward()
    assert alone.item() == 0 and model.softmax.biases[0].grad.isfinite().all()


def test_half_precision_agrees_with_float32():
    model, sampler, _ = build(20)
    hidden, target = batch()
    exact, _ = sampled_loss(model, hidden, target, 1.0, sampler.draw(0))
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded, nats = sampled_loss(model, hidden.bfloat16(), target, 1.0, sampler.draw(0))
    assert rounded.dtype is torch.float32 and nats.dtype is torch.float64
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)


# --------------------------------------------------------------------------- sparse gradients


def train(model, sampler, tables, optimizer, steps, words=10) -> None:
    """A few updates on texts of the first `words` words."""
    for step in range(steps):
        torch.manual_seed(step)
        input, target = torch.randint(words, (2, 2, 8))
        for half in (0, 1):  # as with accumulation
            h = model.embedding(input[half : half + 1])
            sampled_loss(model, h, target[half : half + 1], 1.0, sampler.draw(step))[0].backward()
        for table in tables:
            table.grad = average_sparse_gradient(table.grad)
        clip_gradients(optimizer, list(model.parameters()), 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("tie_weight", [True, False])
@pytest.mark.parametrize("name", ["adam", "sgd", "adagrad"])
def test_rows_that_were_not_drawn_and_what_is_remembered_of_them_stay_as_they_are(name, tie_weight):
    model, sampler, tables = build(5, tie_weight=tie_weight)
    assert len(tables) == 2 - tie_weight
    optimizer = build_optimizer(optimizer_config(name, lr=0.1, momentum=0.9), model.named_parameters(), tables)
    before = [table.detach().clone() for table in tables]
    train(model, sampler, tables, optimizer, steps=3)
    touched = torch.cat([torch.arange(10), *(sampler.draw(step).words for step in range(3))]).unique()
    assert 10 < len(touched) < V
    for table, old in zip(tables, before, strict=True):
        changed = (table != old).any(dim=1).nonzero()[:, 0]
        assert len(changed) > 5 and set(changed.tolist()) <= set(touched.tolist())
        owner = optimizer.parts["sparse"] if name == "adam" else optimizer
        for value in owner.state[table].values():
            if isinstance(value, torch.Tensor) and value.shape == table.shape:
                assert set(value.nonzero()[:, 0].tolist()) == set(changed.tolist())
                assert not value.is_sparse


@pytest.mark.parametrize("name", ["adam", "sgd", "adagrad"])
def test_when_every_row_is_drawn_the_update_is_the_dense_one(name):
    results = []
    for count in (V, None):
        model, sampler, tables = build(count)
        model.embedding.sparse_gradient = count is not None
        config = optimizer_config(name, lr=0.01, eps=1e-12)
        optimizer = build_optimizer(config, model.named_parameters(), tables)
        for step in range(4):
            hidden, target = batch()
            h = hidden + model.embedding(target)
            sample = WordSampler(V, V, 0).draw(step)
            (sampled_loss(model, h, target, 1.0, sample) if count else model.total_loss(h, target))[0].backward()
            for table in tables:
                table.grad = average_sparse_gradient(table.grad)
            norm = clip_gradients(optimizer, list(model.parameters()), 0.25)
            optimizer.step()
            optimizer.zero_grad()
        results.append((norm, model.state_dict()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)  # Adam's first steps divide small by small


def test_the_optimizer_of_two_goes_on_where_it_was_saved(tmp_path):
    finished, states = [], []
    for resumed in (False, True):
        model, sampler, tables = build(5)
        optimizer = build_optimizer(optimizer_config("adam", lr=0.1), model.named_parameters(), tables)
        if resumed:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            assert all(group["lr"] == 0.1 for group in optimizer.param_groups)
        else:
            train(model, sampler, tables, optimizer, steps=2)
            for state in (model.state_dict(), optimizer.state_dict()):
                torch.save(state, tmp_path / "state.pt")
                states.append(torch.load(tmp_path / "state.pt", weights_only=True))
        train(model, sampler, tables, optimizer, steps=3)
        finished.append(model.state_dict())
    assert all(torch.equal(finished[0][name], value) for name, value in finished[1].items())
