"""The adaptive softmax: probabilities, and training's fast sum against the definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import model_config
from txl.model import cluster_loss
from txl.model.transformer import TransformerXL


def build(vocab_size=50, cutoffs=(10, 20), **changes) -> TransformerXL:
    torch.manual_seed(1)
    model = TransformerXL(model_config(**changes), vocab_size, list(cutoffs), 16).double()
    for bias in [*model.softmax.biases, *([model.softmax.cluster_bias] if cutoffs else [])]:
        torch.nn.init.normal_(bias)
    return model


def gradients(model) -> dict:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


SHAPES = [
    dict(),
    dict(tie_weight=False),
    dict(div_val=2, tie_projs=[False, True, False]),
    dict(div_val=2, tie_weight=False),
    dict(d_embed=12, tie_projs=[True]),
    dict(cutoffs=(), adaptive=False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_of_training_equals_the_definition_and_so_does_every_gradient(shape, monkeypatch):
    monkeypatch.setattr(cluster_loss, "LOGITS_AT_ONCE", 100)  # several chunks, also in the tails
    model = build(**shape)
    hidden = torch.randn(2, 21, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(50, (2, 21))
    loss = model.loss(hidden, target).sum() * 0.3
    (expected_hidden,) = torch.autograd.grad(loss, [hidden], retain_graph=True)
    loss.backward()
    expected, hidden.grad = gradients(model), None
    total, nats = model.total_loss(hidden, target, 0.1)
    (3 * total).backward()
    torch.testing.assert_close(nats.double() * 0.3, loss.detach())
    torch.testing.assert_close(hidden.grad, expected_hidden)
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("words", [[0, 3, 4, 19, 20, 34, 35, 49], [21], []], ids=str)
def test_the_vectors_of_some_words_alone_get_a_gradient_and_all_else_keeps_its_own(shape, words, monkeypatch):
    monkeypatch.setattr(cluster_loss, "LOGITS_AT_ONCE", 100)
    model = build(**shape)
    hidden = torch.randn(2, 21, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(50, (2, 21))
    model.total_loss(hidden, target, 0.1)[0].backward()
    expected, expected_hidden, hidden.grad = gradients(model), hidden.grad, None
    total, _ = model.total_loss(hidden, target, 0.1, words=torch.tensor(words, dtype=torch.long))
    total.backward()
    torch.testing.assert_close(hidden.grad, expected_hidden)
    found = gradients(model)
    assert found.keys() == expected.keys() and any(grad.is_sparse for grad in found.values())
    for name, grad in found.items():
        wanted = expected[name]
        if grad.is_sparse:
            begin = 0 if shape.get("div_val", 1) == 1 else (0, 10, 20)[int(name[-1])]
            rows = [word - begin for word in words if 0 <= word - begin < len(wanted)]
            assert grad.coalesce().indices()[0].tolist() == rows
            kept = torch.zeros_like(wanted)
            kept[rows] = wanted[rows]
            grad, wanted = grad.to_dense(), kept
        torch.testing.assert_close(grad, wanted, msg=name)


def test_the_gradient_of_the_lookup_is_added_to_that_of_the_words():
    model, words = build(), torch.tensor([3, 7, 30, 40])
    input, target = words[torch.randint(4, (2, 8))], torch.randint(50, (2, 8))
    model.total_loss(model.embedding(input), target)[0].backward()
    wanted = gradients(model)["embedding.tables.0"]
    model.total_loss(model.embedding(input), target, words=words)[0].backward()
    found = model.embedding.tables[0].grad.coalesce()
    assert found.indices()[0].equal(words)
    torch.testing.assert_close(found.values(), wanted[words])


def loss_of_the_words_after_the_next(model, hidden, target):
    """By the definition: only the head's softmax, where a tail is one column."""
    spans, columns = model.softmax.clusters.spans, model.softmax.columns(model.embedding)
    logits = model.softmax.logits(hidden[:, :-1].flatten(0, 1), 0, model.embedding, columns)
    words = target[:, 1:].flatten().tolist()
    cluster = [next(i for i, (_, end) in enumerate(spans) if word < end) for word in words]
    column = [word if i == 0 else logits.shape[1] - i for word, i in zip(words, cluster, strict=True)]
    return F.cross_entropy(logits, torch.tensor(column), reduction="sum")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multi_token_prediction_adds_the_gradients_of_the_words_after_the_next(shape, monkeypatch):
    monkeypatch.setattr(cluster_loss, "LOGITS_AT_ONCE", 100)
    model = build(**shape)
    hidden = torch.randn(2, 21, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(50, (2, 21))
    plain = model.loss(hidden, target).sum()
    loss = 0.3 * (plain + 0.4 * loss_of_the_words_after_the_next(model, hidden, target))
    (expected_hidden,) = torch.autograd.grad(loss, [hidden], retain_graph=True)
    loss.backward()
    expected, hidden.grad = gradients(model), None
    total, nats = model.total_loss(hidden, target, 0.3, multi_token_weight=0.4)
    total.backward()
    torch.testing.assert_close(nats, plain.detach())  # what is logged is the loss of the next words
    torch.testing.assert_close(hidden.grad, expected_hidden)
    torch.testing.assert_close(gradients(model), expected)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_tokens_in_any_chunks_cost_the_same(data):
    words = data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=12), "targets")
    model = build()
    hidden, target = torch.randn(1, len(words), 16, dtype=torch.float64), torch.tensor([words])
    expected, whole = model.loss(hidden, target).sum(), cluster_loss.LOGITS_AT_ONCE
    expected.backward()
    wanted = gradients(model)
    try:
        cluster_loss.LOGITS_AT_ONCE = data.draw(st.integers(1, 200), "logits at once")
        total, _ = model.total_loss(hidden, target)
    finally:
        cluster_loss.LOGITS_AT_ONCE = whole
    total.backward()
    found = gradients(model)
    torch.testing.assert_close(total, expected)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad)
    for name in found.keys() - wanted.keys():  # a cluster without a token
        assert not found[name].any()


def test_the_tied_table_gets_one_dense_gradient():
    model = build().train()
    assert model.embedding.sparse_gradient
    input = torch.randint(50, (2, 8))
    total, _ = model.total_loss(model.embedding(input), input)
    total.backward()
    fast = gradients(model)["embedding.tables.0"]
    assert not fast.is_sparse
    model.eval()  # the lookup's gradient is dense now
    model.loss(model.embedding(input), input).sum().backward()
    torch.testing.assert_close(fast, model.embedding.tables[0].grad)


def test_the_tied_table_is_not_copied_to_add_the_gradient_of_the_lookup():
    model = build(vocab_size=500, cutoffs=(100, 200)).train()
    input = torch.randint(500, (2, 8))
    total, _ = model.total_loss(model.embedding(input), input)
    with torch.profiler.profile(profile_memory=True) as profiler:
        total.backward()
    allocated = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(allocated) < model.embedding.tables[0].nbytes


def test_a_loss_without_lookup_and_a_lookup_without_loss_have_gradients_too():
    model = build().train()
    input = torch.randint(50, (2, 8))
    table = model.embedding.tables[0]
    model.total_loss(model.embedding(input).detach(), input)[0].backward()
    of_softmax, table.grad = table.grad, None
    model.embedding(input).sum().backward()
    assert table.grad.is_sparse
    of_lookup, table.grad = table.grad.to_dense(), None
    model.embedding(input)  # read, and never used
    hidden = model.embedding(input)
    (model.total_loss(hidden.detach(), input)[0] + hidden.sum()).backward()
    torch.testing.assert_close(table.grad, of_softmax + of_lookup)


def test_no_more_logits_are_held_than_stated(monkeypatch):
    model = build(vocab_size=500, cutoffs=(100, 200)).float()
    monkeypatch.setattr(cluster_loss, "LOGITS_AT_ONCE", 3000)
    monkeypatch.setattr(cluster_loss, "ROWS_AT_ONCE", 100)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() not in weights:
                    largest[0] = max(largest[0], tensor.untyped_storage().nbytes() // 4)
            return out

    weights = {p.untyped_storage().nbytes() for p in model.parameters()}
    hidden, target = torch.randn(1, 64, 16, requires_grad=True), torch.randint(500, (1, 64))
    with Watch():
        total, _ = model.total_loss(hidden, target)
        total.backward()
    assert 102 < largest[0] <= 3000
    with Watch():
        model.loss(hidden, target)
    assert largest[0] > 3000  # the definition holds all 64 * 102


def test_half_precision_agrees_with_float32(monkeypatch):
    monkeypatch.setattr(cluster_loss, "LOGITS_AT_ONCE", 200)
    model = build().float()
    hidden, target = torch.randn(2, 16, 16, requires_grad=True), torch.randint(50, (2, 16))
    model.loss(hidden, target).sum().backward()
    expected, expected_hidden = gradients(model), hidden.grad
    hidden.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model.total_loss(hidden, target)
    total.backward()
    torch.testing.assert_close(hidden.grad, expected_hidden, rtol=0.05, atol=0.02)
    found = gradients(model)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=0.05, atol=0.05 * grad.abs().max().item())


@pytest.mark.parametrize("cutoffs, div_val", [((), 1), ((10, 20), 1), ((10, 20), 2)])
def test_a_hidden_state_of_zero_predicts_the_frequencies_it_was_given(cutoffs, div_val):
    model = build(cutoffs=cutoffs, div_val=div_val)
    counts = torch.arange(50).flip(0)  # the last word never occurs: it counts as half an occurrence
    model.softmax.set_frequencies(counts)
    target = torch.arange(50)
    loss = model.softmax(torch.zeros(50, model.d_model, dtype=torch.float64), target, model.embedding)
    wanted = counts.double().clamp(min=0.5)
    torch.testing.assert_close((-loss).exp().double(), wanted / wanted.sum(), rtol=1e-5, atol=0)
