"""Rotary positions: scores depend on the distance only, in every runtime and however long the stream is."""

import json

import pytest
import torch

from tests.support.bitwise import assert_bitwise_equal
from tests.support.entry_points import run
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import V, build, model_config
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.exchange import export_model
from txl.config.geometry import Geometry
from txl.config.model import Positions
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.model.positions.rotary import RotaryPositions

ROTARY = {"positions": Positions.rotary}


@pytest.mark.parametrize("T, M", [(5, 0), (4, 7), (1, 30)])
def test_scores_are_those_of_complex_rotations_and_depend_on_the_distance_only(T, M):
    torch.manual_seed(0)
    K, H, scheme = M + T, 8, RotaryPositions(model_config(**ROTARY), 64)
    q, k = torch.randn(2, 1, 1, 1, H, dtype=torch.float64).unbind()
    query, key = scheme.transform(0, q.expand(1, 1, T, H), k.expand(1, 1, K, H), scheme.encode(K, Geometry(T, M), q))
    scores = (query @ key.transpose(-1, -2))[0, 0]
    pairs = [torch.complex(*x.flatten().chunk(2)) for x in (q, k)]
    speed = 10000 ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
    for i in range(T):
        for j in range(K):
            turned = torch.polar(torch.ones(H // 2, dtype=torch.float64), speed * (i + M - j))
            expected = (pairs[0] * turned * pairs[1].conj()).real.sum()
            torch.testing.assert_close(scores[i, j], expected, rtol=1e-12, atol=1e-12)


def test_a_future_token_has_no_gradient():
    model, geometry = build(**ROTARY), Geometry(8, 8)
    _, mems = model(torch.arange(8)[None], [], geometry)
    embedded = model.embedding(torch.arange(8, 16)[None]).detach().requires_grad_()
    model.embedding.forward = lambda input: embedded
    hidden, _ = model(torch.arange(8, 16)[None], mems, geometry)
    for t in range(8):
        (grad,) = torch.autograd.grad(hidden[0, t].sum(), embedded, retain_graph=True)
        assert not grad[0, t + 1 :].any() and grad[0, : t + 1].any(dim=1).all()


@torch.no_grad()
def test_a_trillion_tokens_later_the_cache_gives_the_same_numbers():
    geometry, segments = Geometry(4, 9), torch.randint(V, (1, 40)).split(4, dim=1)
    found = []
    for tokens_before in (0, 13 * 10**12):  # a whole number of turns of the ring
        cached, cache = CachedTransformerXL(build(**ROTARY), geometry), []
        for i, segment in enumerate(segments):
            hidden, cache = cached(segment, cache, geometry)
            if i == 5:
                cache.end += tokens_before
        found.append(hidden)
    assert torch.equal(*found)


def test_half_precision_keeps_its_dtype_and_agrees():
    scheme = RotaryPositions(model_config(**ROTARY), 64)
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 900, 8)
    encoding = scheme.encode(900, Geometry(4, 896), q)
    exact = scheme.transform(0, q, k, encoding)
    rounded = scheme.transform(0, q.bfloat16(), k.bfloat16(), encoding)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype is torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.03)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The overrides of a run of 12 steps with rotary positions, and its folder."""
    folder = tmp_path_factory.mktemp("rotary")
    shared = [*write_corpus(folder / "text"), *TINY_RUN, "model.positions=rotary", "scheduler.max_step=12"]
    train_here(*shared, "train.max_step=12", f"run_dir={folder}/run")
    return shared, folder / "run"


def test_a_resumed_run_continues_bitwise(trained, tmp_path):
    shared, straight = trained
    train_here(*shared, "train.max_step=5", f"run_dir={tmp_path}/run")
    train_here(*shared, "train.max_step=12", f"run_dir={tmp_path}/run", "resume=auto")
    for file in ("model.pt", "optimizer.pt"):
        folders = [run_dir / "checkpoints/step_12" for run_dir in (straight, tmp_path / "run")]
        assert_bitwise_equal(*(read_checkpoint_file(folder, file) for folder in folders))


@pytest.mark.parametrize("runtime", ["cached", "torchscript", "auto"])
def test_every_runtime_evaluates_to_the_same_loss(runtime, trained, tmp_path):
    lengths = ["tgt_len=4", "mem_len=13", "same_length=true", "precision=fp64"]
    losses = []
    for name in ("eager", runtime):
        file = tmp_path / f"{name}.json"
        evaluate_here(f"checkpoint={trained[1]}", *lengths, f"runtime={name}", f"json={file}")
        losses.append(json.loads(file.read_text())["test"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_a_text_is_generated_and_clamping_and_foreign_formats_are_refused_in_one_line(trained, tmp_path, capsys):
    _, run_dir = trained
    evaluate_here("task=generate", f"checkpoint={run_dir}", "prompt=the cat", "max_tokens=9", "tgt_len=4", "mem_len=6")
    assert "the cat" in capsys.readouterr().out
    clamped = run("evaluate.py", f"checkpoint={run_dir}", "clamp_len=9", cwd=tmp_path, expect=2).stderr
    assert clamped.startswith("error: clamp_len=9 has no meaning for model.positions=rotary: ")
    assert clamped.endswith("; use clamp_len=-1\n") and clamped.count("\n") == 1
    with pytest.raises(ConfigError, match="model.positions=rotary does not exist in the reference's format"):
        export_model(run_dir, tmp_path / "theirs.pt", "reference")
    assert not (tmp_path / "theirs.pt").exists()
