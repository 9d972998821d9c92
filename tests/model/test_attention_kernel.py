"""The fused attention kernel equals the plain code, tile by tile, through Triton's interpreter; no GPU is needed."""

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.entry_points import PROJECT, environment
from tests.support.models import V, build
from tests.support.triton_interpreter import import_interpreted
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend, Positions
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.model.attention import attention_with_bias, relative_shift

fused_attention = import_interpreted("txl.model.fused_attention")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """On the CPU, in tiles so small that a few tokens need several."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for tile in ("HALF_TILE", "FULL_TILE"):
        monkeypatch.setattr(fused_attention, tile, fused_attention.Tile(16, 16, {}))


def tensors(B: int, N: int, T: int, K: int, H: int, R: int, dtype=torch.float32) -> list[torch.Tensor]:
    """query, key, value as views of a projection's result, and by_distance as a view of a product's."""
    torch.manual_seed(T + K)
    heads = [torch.randn(B, length, N, H, dtype=dtype).transpose(1, 2) for length in (T, K, K)]
    return [*heads, torch.randn(N, B, T, R, dtype=dtype).transpose(0, 1)]


def results(attention, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output, and the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def plain(query, key, value, by_distance, window, dropatt=0.0, kept=None):
    bias = relative_shift(by_distance, key.shape[2], window)
    if kept is None:
        return attention_with_bias(query, key, value, bias, dropatt)
    probability = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias).softmax(-1)
    return (probability * kept / (1 - dropatt)) @ value


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_output_and_every_gradient_equal_the_plain_ones(data):
    T, M = data.draw(st.integers(1, 20), "T"), data.draw(st.integers(0, 20), "M")
    K = M + T
    window = data.draw(st.none() | st.integers(0, K), "window")  # same_length
    most = K if window is None else min(K, window + 1)
    R = data.draw(st.integers(1, most), "R")  # fewer than that: clamped
    inputs = tensors(data.draw(st.integers(1, 2), "B"), 2, T, K, data.draw(st.sampled_from([4, 12, 16]), "H"), R)
    found = results(lambda *x: fused_attention.relative_attention(*x, window, 0.0), inputs)
    expected = results(lambda *x: plain(*x, window), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_keys_in_a_ring_buffer_are_read_where_they_lie(data):
    T, M = data.draw(st.integers(1, 20), "T"), data.draw(st.integers(1, 30), "M")
    K = M + T
    window = data.draw(st.none() | st.integers(0, K), "window")
    R = data.draw(st.integers(1, K if window is None else min(K, window + 1)), "R")
    offset = data.draw(st.integers(0, K - 1), "offset")
    query, key, value, by_distance = tensors(2, 2, T, K, 16, R)
    found = fused_attention.relative_attention(query, key, value, by_distance, window, 0.0, offset)
    bias = relative_shift(by_distance, K, window)
    expected = attention_with_bias(query, key, value, bias, 0.0, ring_offset=offset)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", [Positions.relative, Positions.rotary])
def test_a_cache_that_turns_gives_the_same_with_the_kernel(positions):
    """Segments of one length, as in an evaluation, and shorter ones, after which old keys must not be seen."""
    geometry, found = Geometry(6, 15, 0, 9 if positions is Positions.relative else -1, True), []
    for backend in (AttentionBackend.triton, AttentionBackend.eager):
        cached, cache, states = CachedTransformerXL(build(positions=positions, backend=backend).float()), [], []
        for segment in (torch.arange(70) % V).view(2, 35).split([6] * 4 + [2, 6, 3], dim=1):
            hidden, cache = cached(segment, cache, geometry)
            states.append(hidden)
        found.append(torch.cat(states, 1))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_rotary_models_compute_the_same_with_the_kernel():
    """Their scores have one column, the same for all distances, and need no gradient for it."""
    found = []
    for backend in (AttentionBackend.triton, AttentionBackend.eager):
        model = build(positions=Positions.rotary, backend=backend).float()
        hidden, mems = model(torch.arange(8).view(2, 4), [], Geometry(4, 4))
        hidden = hidden.sum() + (model(torch.arange(8, 16).view(2, 4), mems, Geometry(4, 4))[0] ** 2).sum()
        hidden.backward()
        found.append([hidden.detach(), *(layer.attention.qkv.weight.grad for layer in model.layers)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_half_precision_agrees_within_its_rounding():
    inputs = tensors(1, 2, 20, 37, 16, 37, torch.float16)
    found = results(lambda *x: fused_attention.relative_attention(*x, None, 0.0), inputs)
    expected = results(lambda *x: plain(*x, None), [x.float() for x in inputs])
    torch.testing.assert_close([x.float() for x in found], expected, rtol=0.01, atol=0.01)


def test_dropout_drops_the_same_in_both_passes_and_as_much_as_asked():
    query, key, value, by_distance = tensors(2, 2, 20, 40, 40, 30)

    def fused(*inputs):
        torch.manual_seed(7)
        return fused_attention.relative_attention(*inputs, 29, 0.3)

    # Values that are one-hot show the probabilities themselves, and so which of them were dropped.
    weights = fused(query, key, torch.eye(40).expand_as(value), by_distance)
    kept = weights != 0
    seen = relative_shift(by_distance, 40, 29) > -torch.inf
    assert not (kept & ~seen).any()
    assert 0.65 < kept.sum() / seen.sum() < 0.75
    inputs = [query, key, value, by_distance]
    expected = results(lambda *x: plain(*x, 29, 0.3, kept), inputs)
    torch.testing.assert_close(results(fused, inputs), expected, rtol=1e-4, atol=1e-4)
    torch.manual_seed(8)
    others = fused_attention.relative_attention(query, key, torch.eye(40).expand_as(value), by_distance, 29, 0.3) != 0
    assert (others != kept).any()


def test_heads_drop_independently_of_each_other():
    """The keys of the hash differ: no head's mask is another head's, moved or with its keys in another order."""
    T, N = 64, 8
    query, key, by_distance = (torch.zeros(1, N, T, T) for _ in range(3))
    torch.manual_seed(3)
    value = torch.eye(T).expand(1, N, T, T)
    kept = (fused_attention.relative_attention(query, key, value, by_distance, None, 0.5)[0] != 0).float()
    seen = torch.ones(T, T).tril()
    for shift in range(4):  # the place of a key, with its lowest bits changed
        moved, count = kept[:, :, torch.arange(T) ^ shift], seen * seen[:, torch.arange(T) ^ shift]
        agree = ((kept[:, None] == moved[None]) * count).sum((-1, -2)) / count.sum()
        others = agree[~torch.eye(N, dtype=torch.bool)]
        assert (others - 0.5).abs().max() < 5 * 0.5 / count.sum() ** 0.5


@pytest.mark.parametrize("value_residual, count", [(False, 1), (True, 2)])
def test_a_layer_with_the_kernel_is_one_program_with_the_same_numbers(value_residual, count):
    """fullgraph=True: a break would be an error. The first layer has a program of its own if it hands its values on."""
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    found = []
    for compiles in (False, True):
        model = build(n_layer=3, backend=AttentionBackend.triton, value_residual=value_residual).float().train()
        if compiles:
            model.compile_layers(backend)
        hidden, mems = model(torch.arange(8).view(2, 4), [], Geometry(4, 4))
        hidden = hidden.sum() + (model(torch.arange(8, 16).view(2, 4), mems, Geometry(4, 4))[0] ** 2).sum()
        hidden.backward()
        found.append([hidden.detach(), *(p.grad for p in model.layers.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert len(programs) == count and all("txl.relative_attention" in program.code for program in programs)


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from txl.model import attention_kernel as kernels
from txl.model.fused_attention import tile_of

dtype, capability, precision = getattr(torch, sys.argv[1]), int(sys.argv[2]), sys.argv[3]
tile = tile_of(dtype)
element = "*fp32" if dtype == torch.float32 else "*bf16"
types = dict(log_sum="*fp32", row_sum="*fp32", seed="*i64", scale="fp32", boost="fp32")
types |= dict.fromkeys("query key value by_distance out grad_out".split(), element)
types |= dict.fromkeys("grad_query grad_by_distance grad_key grad_value".split(), element)
constants = dict(DROPS=True, SHIFTS=True, CLAMPS=False, H_FULL=True, PRECISION=precision)
constants |= dict(BT=tile.queries, BK=tile.keys, BH=64)
for kernel, ring in [(kernels._forward, False), (kernels._forward, True), (kernels._backward_queries, False),
                     (kernels._backward_keys, False)]:
    constants["RING"] = ring
    mine = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in mine else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=mine)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=tile.options)
    print(kernel.__name__, len(built.asm["cubin"]), built.metadata.shared)
"""


@pytest.mark.slow
@pytest.mark.timeout(1000)  # a quarter of a minute where nothing else runs
@pytest.mark.parametrize(
    "dtype, capability, precision, most",
    [("bfloat16", 80, "ieee", 48), ("bfloat16", 90, "ieee", 48), ("float32", 89, "tf32", 99)],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(dtype, capability, precision, most):
    """As Triton compiles them ahead of time; each fits the shared memory (KiB) of the smallest GPU of its kind."""
    run = [sys.executable, "-c", COMPILE, dtype, str(capability), precision]
    env = environment(PYTHONPATH=str(PROJECT), TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")
    done = subprocess.run(run, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4  # forward, also with a ring buffer; backward for the queries and for the keys
    assert all(int(size) > 0 and int(shared) <= most * 1024 for _, size, shared in lines), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_training_steps_lie_on_those_of_the_plain_code():
    """Losses and weights, with memory, the same window for all and clamped distances, from the same start."""
    geometry, found = Geometry(6, 9, 0, 7, True), []
    tokens = torch.randint(V, (2, 50 * 6 + 1), generator=torch.Generator().manual_seed(2))
    for backend in (AttentionBackend.triton, AttentionBackend.eager):
        model, mems, losses = build(backend=backend).float().train(), [], []
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for begin in range(0, 300, 6):
            hidden, mems = model(tokens[:, begin : begin + 6], mems, geometry)
            loss = model.loss(hidden, tokens[:, begin + 1 : begin + 7]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        found.append([torch.stack(losses), *(p.detach() for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    assert found[0][0][-10:].mean() < found[0][0][:10].mean() + 0.1
