"""Evaluation that learns from what it has scored: never before, and the checkpoint stays as it is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import V, build
from tests.support.tiny_runs import TINY_RUN
from txl.config.adaptation import Adaptation, Dynamic
from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.config.precision import Arithmetic
from txl.data.batches import TokenStream
from txl.errors import ConfigError
from txl.evaluate.adaptation import evaluate_adaptively
from txl.evaluate.dynamic_weights import gradient_roots, rms_from
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.loss import evaluate_stream
from txl.evaluate.neural_cache import NeuralCache
from txl.model.attention import Attention

TOKENS = np.random.default_rng(0).integers(0, 12, 201)
GEOMETRY = Geometry(8, 16)
SGD = Adaptation(dynamic=Dynamic.sgd, dynamic_rate=0.3)
RMS = Adaptation(dynamic=Dynamic.rms)
CACHE = Adaptation(neural_cache=30, cache_theta=0.2, cache_lambda=0.3)
BOTH = replace(SGD, neural_cache=30, cache_theta=0.2, cache_lambda=0.3)


def stream(tokens=TOKENS, batch_size=1, warmup=0):
    return TokenStream(tokens, batch_size, GEOMETRY.tgt_len, warmup_len=warmup)


def loss(options, tokens=TOKENS, batch_size=1, model=None, **more):
    return evaluate_adaptively(model or build(), stream(tokens, batch_size), GEOMETRY, batch_size, options, **more).loss


def nats_of_segments(options, tokens):
    """The nats of every segment, in their order."""
    sums = [0.0]
    sums += [n * 8 * loss(options, tokens, max_steps=n) for n in range(1, stream(tokens).n_batches)]
    return np.diff(sums)


@pytest.mark.parametrize("options", [SGD, BOTH, replace(SGD, dynamic_segments=3, dynamic_decay=0.1)])
def test_a_token_changes_the_losses_of_its_own_segment_and_of_later_ones_alone(options):
    """Another token at the end of segment 5 changes the loss of that token and of what follows, and nothing before."""
    tokens, changed = TOKENS[:73], TOKENS[:73].copy()
    changed[48] = (changed[48] + 1) % 12  # the last target of segment 5 (tokens 41 to 48)
    before, after = nats_of_segments(options, tokens), nats_of_segments(options, changed)
    assert (before[:5] == after[:5]).all() and (before[5:] != after[5:]).all()


def loss_by_hand(model, update) -> float:
    """Score a segment, take the gradient of its mean loss, `update` the model; then the next segment."""
    mems, nats = [], 0.0
    for index in range(stream().n_batches):
        batch = stream().batch(1, index)
        hidden, mems = model(batch.input, mems, GEOMETRY)
        losses = model.loss(hidden, batch.target)
        nats += losses.sum().item()
        model.zero_grad()
        losses.mean().backward()
        with torch.no_grad():
            update(model)
    return nats / 200


def test_segments_are_scored_with_the_weights_of_the_segments_before():
    def descend(model):
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.3 * weight.grad

    assert loss(SGD) == pytest.approx(loss_by_hand(build(), descend), rel=1e-10)
    assert loss(SGD) < evaluate_stream(build(), stream(), GEOMETRY, 1).loss - 0.1  # 12 of the 50 tokens occur


def test_the_root_mean_square_starts_at_that_of_training_and_follows_the_text():
    options = Adaptation(dynamic=Dynamic.rms, dynamic_rate=0.002, dynamic_beta=0.9)
    roots = gradient_roots(build(), stream(), GEOMETRY, 5, Arithmetic.fp32)
    squares = [root.square() for root in roots]

    def descend(model):
        for weight, square in zip(model.parameters(), squares, strict=True):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            square.mul_(0.9).add_(gradient**2, alpha=0.1)
            weight -= 0.002 * gradient / (square.sqrt() + 1e-8)

    assert loss(options, roots=roots) == pytest.approx(loss_by_hand(build(), descend), rel=1e-6)
    assert loss(options, roots=roots) < evaluate_stream(build(), stream(), GEOMETRY, 1).loss - 0.05


def tables(model):
    """The vectors of words by table, with the first word of each."""
    begin = {0: 0, 1: 20, 2: 35} if len(model.embedding.tables) > 1 else {0: 0}
    of_embedding = [(table, begin[i]) for i, table in enumerate(model.embedding.tables)]
    return of_embedding + [(table, begin[i]) for i, table in enumerate(model.softmax.weights)]


@pytest.mark.parametrize("shape", [{}, {"tie_weight": False}, {"div_val": 2, "tie_projs": [False]}], ids=str)
@pytest.mark.parametrize("options", [SGD, BOTH, replace(RMS, dynamic_rate=0.002, dynamic_beta=0.9)])
def test_only_vectors_of_words_among_the_last_tokens_learn(shape, options):
    """Against the definition. Segments have 8 tokens, so that 20 tokens are those of the last three segments."""
    options, model = replace(options, dynamic_words=20), build(**shape)
    is_rms = options.dynamic is Dynamic.rms
    roots = gradient_roots(model, stream(), GEOMETRY, 5, Arithmetic.fp32) if is_rms else None
    squares = [root.square() for root in roots] if is_rms else None
    segments, seen = (TOKENS[begin : begin + 9] for begin in range(0, 200, 8)), []

    def descend(model):
        seen.append(set(next(segments).tolist()))
        words = set().union(*seen[-3:])
        first_words = {id(table): begin for table, begin in tables(model)}
        for i, weight in enumerate(model.parameters()):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            rows = slice(None)
            if id(weight) in first_words:
                begin = first_words[id(weight)]
                rows = torch.tensor([word in words for word in range(begin, begin + len(weight))])
            step = gradient[rows]
            if is_rms:
                squares[i][rows] = 0.9 * squares[i][rows] + 0.1 * step**2
                step = step / (squares[i][rows].sqrt() + 1e-8)
            weight[rows] -= options.rate * step

    found = loss(options, model=model, roots=roots)
    if options.neural_cache is None:
        assert found == pytest.approx(loss_by_hand(build(**shape), descend), rel=1e-8)
    else:  # the mixture does not change what is learnt
        alone = replace(options, neural_cache=None, cache_theta=CACHE.cache_theta)
        near = replace(options, cache_lambda=1e-12)
        assert loss(near, model=model) == pytest.approx(loss(alone, model=model), rel=1e-8)
    assert found != loss(replace(options, dynamic_words=None), model=model, roots=roots)


@pytest.mark.parametrize("shape", [{}, {"pre_lnorm": True}, {"positions": Positions.rotary}, {"div_val": 2}], ids=str)
def test_without_attention_its_output_is_a_constant_of_the_gradient(shape, monkeypatch):
    """Against the eager model, whose attention is cut out of the graph: LayerNorm and the rest learn."""
    model, attend = build(**shape), Attention.attend
    found = loss(replace(SGD, dynamic_attention=False), model=model)

    def descend(model):
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                assert name.split(".")[-2] not in ("qkv", "output", "position")
                weight -= 0.3 * weight.grad

    monkeypatch.setattr(Attention, "attend", lambda self, *given: attend(self, *given).detach())
    assert found == pytest.approx(loss_by_hand(build(**shape), descend), rel=1e-8)
    monkeypatch.undo()
    assert found != loss(SGD, model=model) and found < evaluate_stream(model, stream(), GEOMETRY, 1).loss - 0.05


def test_attention_in_half_precision_is_that_of_the_eager_model():
    """Under autocast, with a rate of nearly nothing: no weight moves far, and all products are those of bfloat16."""
    model, half = build().float(), Arithmetic.bf16
    still = replace(SGD, dynamic_rate=1e-12, dynamic_words=30)
    eager = loss(still, model=model, precision=half)
    assert loss(replace(still, dynamic_attention=False), model=model, precision=half) == pytest.approx(eager, rel=1e-3)


def test_a_weight_without_a_gradient_in_training_moves_by_a_limited_step():
    """The row of a word that training never saw, under a gradient of any size: rate / sqrt(1 - beta)."""
    weight = torch.nn.Parameter(torch.zeros(3))
    options = Adaptation(dynamic=Dynamic.rms, dynamic_rate=0.001, dynamic_beta=0.99)
    weight.grad = torch.tensor([1.0, -1e6, 0.0])
    rms_from([weight], [torch.zeros(3)], options).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.01, 0.01, 0.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("options", [SGD, CACHE, RMS, replace(RMS, dynamic_words=20, dynamic_attention=False)])
def test_the_model_has_its_trained_weights_afterwards(options):
    model, same = build(), build().state_dict()
    roots = gradient_roots(model, stream(), GEOMETRY, 5, Arithmetic.fp32) if options.dynamic is Dynamic.rms else None
    first = loss(options, model=model, roots=roots)
    assert all((value == same[name]).all() for name, value in model.state_dict().items())
    assert loss(options, model=model, roots=roots) == first


@pytest.mark.parametrize("options", [SGD, CACHE, replace(SGD, dynamic_attention=False)])
def test_a_model_that_was_in_training_is_in_training_again(options):
    model = build().float().train()  # in float32 attention has matrices of its own
    loss(options, model=model)
    assert all(module.training for module in model.modules())


def test_a_full_decay_forgets_everything_at_every_update():
    forgetful = replace(SGD, dynamic_rate=1e-12, dynamic_decay=1.0)
    assert loss(forgetful) == pytest.approx(evaluate_stream(build(), stream(), GEOMETRY, 1).loss, rel=1e-9)


def test_gradients_on_the_training_split_are_measured_by_their_root_mean_square():
    model = build()
    roots, squares, mems = gradient_roots(model, stream(), GEOMETRY, 4, Arithmetic.fp32), 0.0, []
    for index in (0, 6, 12, 18):
        batch = stream().batch(1, index)
        hidden, mems = model(batch.input, mems, GEOMETRY)
        model.zero_grad()
        model.loss(hidden, batch.target).mean().backward()
        squares += model.layers[0].attention.qkv.weight.grad ** 2
    index = [name for name, _ in model.named_parameters()].index("layers.0.attention.qkv.weight")
    torch.testing.assert_close(roots[index], (squares / 4).sqrt())


def test_the_mixture_with_the_cache_is_a_distribution():
    """Over all possible next tokens the probabilities sum to 1, with the adaptive softmax's exact ones."""
    model, text = build(), torch.from_numpy(TOKENS[:16])[None]
    with torch.no_grad():
        hidden, _ = model(text, [], Geometry(16, 16))
        log_prob = model.log_prob(hidden[0])  # [16, V]
        total = 0.0
        for word in range(V):
            target = torch.cat([text[:, 1:], torch.tensor([[word]])], dim=1)  # `word` is the last token's target
            nats = -log_prob.gather(1, target.t()).t()
            total += math.exp(-NeuralCache(9, 0.4, 0.3).read(hidden, target, nats)[0, -1])
            assert NeuralCache(9, 0.4, 0.3).read(hidden, target, nats)[0, 0] == nats[0, 0]  # nothing is remembered yet
    assert total == pytest.approx(1, rel=1e-6)


def test_the_cache_remembers_the_last_tokens_across_segments_and_runtimes():
    model = build()
    eager, cached = loss(CACHE, model=model), loss(CACHE, model=CachedTransformerXL(model))
    assert cached == pytest.approx(eager, rel=1e-10) and eager < evaluate_stream(build(), stream(), GEOMETRY, 1).loss
    one_segment = evaluate_adaptively(model, TokenStream(TOKENS, 1, 200), Geometry(200, 0), 1, CACHE).loss
    in_parts = evaluate_adaptively(model, TokenStream(TOKENS, 1, 8), Geometry(8, 200), 1, CACHE).loss
    assert in_parts == pytest.approx(one_segment, rel=1e-10)
    assert math.isfinite(loss(replace(CACHE, neural_cache=1)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptation")
    lengths = ["evaluation.tgt_len=6", "evaluation.mem_len=20", "train.max_step=20"]
    train_here(*TINY_RUN, *write_corpus(folder / "text"), *lengths, f"run_dir={folder}/run")
    return folder / "run"


@pytest.mark.parametrize("more", [[], ["dynamic_words=12", "dynamic_attention=false"]], ids=["all", "some"])
def test_two_processes_learn_as_one(trained, tmp_path, more):
    chosen = ["hardware=cpu", f"checkpoint={trained}", "precision=fp64", "batch_size=3", "max_steps=9", *more]
    chosen += ["dynamic=rms", "dynamic_rate=0.001", "dynamic_decay=0.01", "dynamic_statistics=4", "neural_cache=50"]
    evaluate_here(*chosen, f"json={tmp_path}/one.json")
    run("evaluate.py", *chosen, "gpus=2", "json=two.json", cwd=tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["test"] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-10) and two["tokens"] == one["tokens"]


def test_the_settings_stand_beside_the_result_and_the_checkpoint_is_untouched(trained, tmp_path, capsys):
    files = {path: path.read_bytes() for path in (trained / "checkpoints").rglob("*") if path.is_file()}
    chosen = ["hardware=cpu", f"checkpoint={trained}", "dynamic=sgd", "neural_cache=100", f"json={tmp_path}/r.json"]
    chosen.append("max_steps=20")
    evaluate_here(*chosen, "dynamic_rate=0.05", "split=all")
    printed = " ".join(capsys.readouterr().out.split())  # whose lines fit into 80 columns
    settings = "dynamic sgd rate 0.05 decay 0.0 segments 1 neural_cache 100 theta 0.015 lambda 0.3"
    assert "bsz 1 " in printed and settings in printed
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["runtime"] == "eager" and result["valid"]["adaptation"] == result["test"]["adaptation"]
    assert result["test"]["adaptation"]["rate"] == 0.05 and result["test"]["batch_size"] == 1
    assert files == {path: path.read_bytes() for path in (trained / "checkpoints").rglob("*") if path.is_file()}
    evaluate_here(*chosen, "dynamic_rate=0.05")  # the test split does not profit from what valid has taught
    assert json.loads((tmp_path / "r.json").read_text())["test"]["loss"] == result["test"]["loss"]


def test_what_learns_stands_beside_the_result_where_it_is_not_everything():
    assert "attention" not in RMS.settings() and "words" not in RMS.settings()
    text = replace(RMS, dynamic_attention=False, dynamic_words=500).adaptation_text
    assert text.startswith("dynamic rms rate 0.0001 decay 0.0 segments 1 attention constant words 500 beta")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dynamic=sgd", "runtime=cached"], "runtime=cached has fixed weights"),
        (["neural_cache=10", "runtime=torchscript"], "runtime=torchscript has fixed weights or shapes"),
        (["dynamic=sgd", "repeat=2"], "repeat=2 reads a text again that dynamic=sgd has learnt"),
        (["dynamic=sgd", "latency=true"], "latency=true measures the runtimes"),
        (["dynamic_rate=0.1"], "dynamic_rate=0.1 has no meaning without dynamic=sgd"),
        (["dynamic=sgd", "dynamic_beta=0.9"], "dynamic_beta=0.9 has no meaning without dynamic=rms"),
        (["dynamic=sgd", "dynamic_statistics=9"], "dynamic_statistics=9 has no meaning without dynamic=rms"),
        (["dynamic_words=9"], "dynamic_words=9 has no meaning without dynamic=sgd"),
        (["dynamic=sgd", "dynamic_words=0"], "dynamic_words=0 must be above 0"),
        (["dynamic=sgd", "dynamic_words=9", "dynamic_segments=2"], "dynamic_words=9 keeps the words of one segment"),
        (
            ["dynamic=sgd", "dynamic_attention=false", "runtime=eager"],
            "runtime=eager cannot run dynamic_attention=false",
        ),
        (["dynamic=sgd", "dynamic_attention=false", "ext_len=2"], "ext_len=2 needs dynamic_attention=true"),
        (["dynamic=rms", "cache_theta=0.1"], "cache_theta=0.1 has no meaning without neural_cache"),
        (["cache_lambda=1", "neural_cache=5"], "cache_lambda=1.0 must be 0 or more and below 1"),
        (["neural_cache=5", "text=a b"], "neural_cache=5 is for a split of the data set"),
    ],
)
def test_a_mistake_is_named(trained, overrides, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_here("hardware=cpu", f"checkpoint={trained}", *overrides)
