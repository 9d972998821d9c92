"""The step of tests/gpu_check.py that computes the same in two ways: how far both are apart, and what each takes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.gpu_correctness import relative_error
from tests.support.gpu_rows import Rows
from tests.support.gpu_speed import seconds_of
from tests.support.gpu_trainer import benchmark_config, clean_up, device_of, draw_weights, drawn_on_the_gpu
from tests.support.interpreted_kernels import interpreter_fault
from txl.bench.inference import build_benchmark_model
from txl.config.precision import Arithmetic
from txl.evaluate.fixed_weights import with_fixed_weights
from txl.evaluate.kv_cache import CachedTransformerXL, GraphedTransformerXL
from txl.model.attention import attention_with_bias, relative_shift
from txl.model.fused_attention import relative_attention
from txl.optim import batched_muon
from txl.system.precision import autocast


def pairs(rows: Rows) -> None:
    """Each pair on its own; an error in one is a row."""
    for compare in (muon, ring, losses, biases):
        with rows.guarded(what=compare.__name__):
            compare(rows)
        clean_up()


def both_ms(rows: Rows, ours: Callable[[], Any], plain: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of a call of each."""
    repeat = 1 if rows.tiny else 10
    return {"ms": 1e3 * seconds_of(ours, repeat), "plain_ms": 1e3 * seconds_of(plain, repeat)}


def ring(rows: Rows) -> None:
    """Attention over keys in a ring buffer: the fused kernel beside the plain code, with float64 as the truth."""
    if rows.tiny and (fault := interpreter_fault()):
        return rows.add(what="ring", skipped=fault)
    shapes = {"base": (8, 64, 704, 401, 640), "large": (16, 128, 1728, 1001, 1600)}  # heads, queries, keys, R, window
    for name, (N, T, K, R, window) in ({"tiny": (2, 5, 12, 6, 8)} if rows.tiny else shapes).items():
        for B in (2,) if rows.tiny else (1, 8, 32):
            torch.manual_seed(0)
            dtype, device = torch.float16 if rows.tiny else torch.bfloat16, device_of(rows.tiny)
            query, key, value = (torch.randn(B, n, N, 64, device=device).to(dtype).transpose(1, 2) for n in (T, K, K))
            by_distance = torch.randn(N, B, T, R, device=device).to(dtype).transpose(0, 1)

            def fused(q=query, k=key, v=value, d=by_distance, window=window, K=K) -> torch.Tensor:
                return relative_attention(q, k, v, d, window, 0.0, K // 3)

            def plain(q=query, k=key, v=value, d=by_distance, window=window, K=K) -> torch.Tensor:
                return attention_with_bias(q, k, v, relative_shift(d, K, window), 0.0, ring_offset=K // 3)

            exact = plain(*(x.double() for x in (query, key, value, by_distance)))
            error, plain_error = relative_error(fused(), exact), relative_error(plain(), exact)
            rows.add(what="ring", model=name, batch=B, error=error, plain_error=plain_error, ok=error < 2e-2,
                     **both_ms(rows, fused, plain))  # fmt: skip
    return None


@torch.no_grad()
def losses(rows: Rows) -> None:
    """The losses of a few tokens through all clusters, on a GPU as a graph, beside those of sorted tokens."""
    device, config = device_of(rows.tiny), benchmark_config(rows.tiny, "base", "model.n_layer=1")
    with pytest.MonkeyPatch.context() as patch:
        drawn_on_the_gpu(patch, rows.tiny)
        model = build_benchmark_model(config, device, Arithmetic.bf16)
    draw_weights(model)
    for n in (4,) if rows.tiny else (64, 256):
        hidden, target = torch.randn(1, n, model.d_model, device=device), torch.randint(model.vocab_size, (1, n))
        ids, tokens = target.to(device), model.softmax.clusters.sort_tokens(target.flatten()).to(device)
        with autocast(Arithmetic.bf16, device):
            halved = with_fixed_weights(model)
            plain = CachedTransformerXL(halved)
            found = halved.softmax.loss_through_all_clusters(hidden[0], ids[0], halved.embedding).sum()
            values = {"what": "losses", "tokens": n}
            if not rows.tiny:
                graphed = GraphedTransformerXL(halved)
                found = graphed.total_loss(hidden, ids)[1]
                values |= both_ms(
                    rows, lambda g=graphed, h=hidden, t=ids: g.total_loss(h, t),
                    lambda p=plain, h=hidden, t=ids, s=tokens: p.total_loss(h, t, tokens=s),
                )  # fmt: skip
            error = relative_error(found, plain.total_loss(hidden, ids, tokens=tokens)[1])
        rows.add(**values, error=error, ok=error < 5e-3)


def biases(rows: Rows) -> None:
    """Plain attention adds a bias in float32 to queries in half precision, which makes them float32.

    Casting the bias instead saves four tensors a layer, and rounds once more: how far are both from float64?
    """
    B, N, T, K = (1, 2, 5, 9) if rows.tiny else (32, 8, 192, 384)
    device, dtype = device_of(rows.tiny), torch.bfloat16
    torch.manual_seed(0)
    query, key = (torch.randn(B, N, n, 64, device=device).to(dtype) for n in (T, K))
    bias = torch.randn(N, 1, 64, device=device) * 0.1

    def as_it_is() -> torch.Tensor:
        return (query + bias).to(dtype) @ key.mT

    def cast() -> torch.Tensor:
        return (query + bias.to(dtype)) @ key.mT

    exact = (query.double() + bias.double()) @ key.double().mT
    error, plain_error = relative_error(cast(), exact), relative_error(as_it_is(), exact)
    rows.add(what="biases", error=error, plain_error=plain_error, ok=error < 2 * plain_error,
             **both_ms(rows, cast, as_it_is))  # fmt: skip


def muon(rows: Rows) -> None:
    """Matrices of one shape together, beside torch's own steps: how far the weights went apart."""
    size, count = (8, 2) if rows.tiny else (512, 16)
    for name, shape in {"square": (size, size), "wide": (size, 4 * size), "tall": (4 * size, size)}.items():
        torch.manual_seed(0)
        ours = [torch.nn.Parameter(torch.randn(shape, device=device_of(rows.tiny)) * 0.02) for _ in range(count)]
        theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
        options = {"lr": 0.01, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
        own, torchs = batched_muon.BatchedMuon(ours, **options), torch.optim.Muon(theirs, **options)
        for _ in range(3 if rows.tiny else 50):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            own.step()
            torchs.step()
        moved = zip(ours, theirs, before, strict=True)
        error = max(relative_error(a.detach() - start, b.detach() - start) for a, b, start in moved)
        rows.add(what="muon", shape=name, matrices=count, error=error, ok=error < 0.02,
                 **both_ms(rows, own.step, torchs.step))  # fmt: skip
