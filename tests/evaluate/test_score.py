"""Scores of texts: the same one by one, together, after a context, and whatever the runtime."""

import itertools

import numpy as np
import pytest
import torch

from tests.support.models import V, build
from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.config.precision import Arithmetic
from txl.evaluate import score
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.score import TokenScorer

LENGTHS = [1, 2, 7, 7, 20, 33, 3, 12, 0, 64]
GEOMETRIES = [Geometry(8, 64), Geometry(5, 9, 0, 6, True), Geometry(64, 0), Geometry(8, 100, 0, 9, True)]
RUNTIMES = {"eager": lambda model: model, "cached": CachedTransformerXL}


def texts(lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, V, length) for length in lengths]


@torch.no_grad()
def losses_of_one(model, ids, geometry, start=0):
    """Read segment by segment from the first token on: the losses of all tokens after position `start`."""
    tokens, mems, nats = torch.from_numpy(np.asarray(ids, np.int64))[None], [], []
    edges = [*range(0, start, geometry.tgt_len), *range(start, len(ids) - 1, geometry.tgt_len), len(ids) - 1]
    for begin, end in itertools.pairwise(edges):
        hidden, mems = model(tokens[:, max(0, begin - geometry.ext_len) : end], mems, geometry)
        nats += model.loss(hidden, tokens[:, begin + 1 : end + 1])[0].tolist()
    return nats[start:]


def assert_same(found, expected):
    assert [len(losses) for losses in found] == [len(losses) for losses in expected]
    for losses, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(losses, others, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_texts_read_together_have_the_losses_that_they_have_alone(runtime, geometry, batch_tokens, monkeypatch):
    monkeypatch.setitem(score.BATCH_TOKENS, "cpu", batch_tokens)
    model = build()
    found = TokenScorer(RUNTIMES[runtime](model), geometry).score(texts())
    assert_same(found, [losses_of_one(model, ids, geometry) for ids in texts()])


@pytest.mark.parametrize("positions", list(Positions))
def test_every_positional_scheme_scores_texts_together(positions):
    """With absolute positions, tokens after a text would move it: only texts of one length are read together."""
    model = build(positions=positions)
    found = TokenScorer(model, Geometry(8, 24)).score(texts())
    assert_same(found, [losses_of_one(model, ids, Geometry(8, 24)) for ids in texts()])


def test_an_extended_context_is_read_again_before_every_segment():
    model, geometry = build(), Geometry(6, 0, 3)
    assert_same(TokenScorer(model, geometry).score(texts()), [losses_of_one(model, x, geometry) for x in texts()])
    with_memory, context = Geometry(6, 12, 3), texts([20], seed=9)[0]
    found = TokenScorer(model, with_memory).score(texts(), context.tolist())
    expected = [losses_of_one(model, [*context, *ids], with_memory, start=19) for ids in texts()]
    assert_same(found, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("length", [1, 2, 30, 90])
def test_a_context_is_read_once_and_every_text_goes_on_from_it(runtime, geometry, length, monkeypatch):
    monkeypatch.setitem(score.BATCH_TOKENS, "cpu", 20)
    model, context = build(), texts([length], seed=9)[0].tolist()
    fast, calls = RUNTIMES[runtime](model), []
    hook = fast.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    several = texts([4, 4, 12, 4, 9, 30])  # batches of several lengths
    found = TokenScorer(fast, geometry).score(several, context)
    hook.remove()
    assert_same(found, [losses_of_one(model, [*context, *x], geometry, length - 1) for x in several])
    segments = sum(-(-len(x) // geometry.tgt_len) for x in (several[5], several[2], several[4], several[0]))
    assert len(calls) == -(-(length - 1) // geometry.tgt_len) + segments and calls[-1] == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_texts_in_sequence_are_one_long_text(runtime):
    model, geometry, parts = build(), Geometry(8, 24), texts([5, 8, 1, 0, 12])
    found = list(TokenScorer(RUNTIMES[runtime](model), geometry).score_in_sequence(parts, [1, 2]))
    assert [len(losses) for losses in found] == [len(ids) for ids in parts]
    # A memory that holds everything makes the edges of segments irrelevant.
    everything = Geometry(8, 64)
    found = list(TokenScorer(RUNTIMES[runtime](model), everything).score_in_sequence(parts, [1, 2]))
    (expected,) = TokenScorer(model, Geometry(64, 64)).score([np.concatenate(parts)], [1, 2])
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-10)


def test_a_program_of_fixed_shapes_scores_text_by_text():
    model, geometry = build(), Geometry(8, 24)
    program = FixedShapeProgram(step := CachedStep(model, geometry), step)
    assert_same(TokenScorer(program, geometry).score(texts()), [losses_of_one(model, x, geometry) for x in texts()])


def test_half_precision_scores_within_its_rounding():
    model = build().float()
    exact = TokenScorer(model, Geometry(8, 64)).score(texts())
    rounded = TokenScorer(CachedTransformerXL(model), Geometry(8, 64), Arithmetic.bf16).score(texts())
    for losses, others in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(losses, others, rtol=2e-2, atol=2e-2)
