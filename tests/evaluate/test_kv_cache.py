"""The cached runtime reads every token once and computes the same."""

import contextlib
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.models import V, build, model_config
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend, Positions
from txl.config.schema import Runtime
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram, make_program
from txl.evaluate.fixed_weights import with_fixed_weights
from txl.evaluate.kv_cache import CachedTransformerXL, GraphedTransformerXL, count_graphs
from txl.evaluate.loss import LossSum, run_segment
from txl.model.transformer import TransformerXL


def stream(B, n, seed=1):
    return torch.randint(0, V, (B, n + 1), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def losses(model, tokens, geometry):
    """Losses [B, n] of a stream, read segment by segment (the last one may be shorter)."""
    mems, parts = [], []
    for begin in range(0, tokens.shape[1] - 1, geometry.tgt_len):
        end = min(begin + geometry.tgt_len, tokens.shape[1] - 1)
        hidden, mems = model(tokens[:, begin:end], mems, geometry)
        parts.append(model.loss(hidden, tokens[:, begin + 1 : end + 1]))
    return torch.cat(parts, dim=1)


@settings(max_examples=40, deadline=None)
@given(
    positions=st.sampled_from([Positions.relative, Positions.shaw, Positions.rotary]),
    T=st.integers(1, 9),
    mem_len=st.integers(0, 24),
    clamp_len=st.sampled_from([-1, 1, 5, 16]),
    same_length=st.booleans(),
    B=st.integers(1, 3),
    changes=st.sampled_from([{}, {"pre_lnorm": True}, {"untie_r": True}, {"div_val": 2}]),
)
def test_the_cached_runtime_computes_the_same_losses(positions, T, mem_len, clamp_len, same_length, B, changes):
    model = build(positions=positions, **changes)
    clamp_len = -1 if positions is Positions.rotary else clamp_len
    geometry = Geometry(T, mem_len, 0, clamp_len, same_length and mem_len > 0)
    tokens = stream(B, 50)
    expected = losses(model, tokens, geometry)
    torch.testing.assert_close(losses(CachedTransformerXL(model), tokens, geometry), expected, rtol=1e-10, atol=1e-12)


def test_in_float32_the_losses_agree_to_1e_5():
    model = build().float()
    tokens, geometry = stream(2, 60), Geometry(4, 20, 0, 9, True)
    expected = losses(model, tokens, geometry)
    torch.testing.assert_close(losses(CachedTransformerXL(model), tokens, geometry), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("geometry", [Geometry(4, 20), Geometry(5, 17, 0, 9, True), Geometry(1, 6, 0, -1, True)])
def test_in_half_precision_the_losses_agree_within_its_rounding(dtype, rounding, geometry):
    model, tokens = build().float(), stream(2, 60)
    with torch.autocast("cpu", dtype):
        expected = losses(model, tokens, geometry)
        ours = losses(CachedTransformerXL(model), tokens, geometry)
    torch.testing.assert_close(ours, expected, rtol=rounding, atol=rounding)
    with torch.no_grad():
        exact = losses(model, tokens, geometry)
    assert (ours.mean() - exact.mean()).abs() < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [dict(), dict(div_val=2, tie_projs=[False, True, False]),
                                     dict(tie_weight=False, positions=Positions.rotary)], ids=str)  # fmt: skip
def test_weights_that_are_cast_once_give_the_same_bits_and_are_not_cast_again(dtype, changes):
    model, tokens, geometry = build(**changes).float(), stream(2, 60), Geometry(4, 20)
    cast: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].untyped_storage().data_ptr() in weights:
                cast.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    layers = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    tables = [*model.embedding.tables, *model.softmax.weights]
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*layers, *tables]}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, casts = [], []
    with torch.autocast("cpu", dtype):
        for half in (True, False):
            runtime = CachedTransformerXL(with_fixed_weights(model) if half else model)
            cast.clear()
            with Watch(), torch.autocast("cpu", dtype):  # a context for each text, as an evaluation has it
                found.append(losses(runtime, tokens, geometry))
            casts.append(len(cast))
    assert torch.equal(*found)
    assert casts[0] == 0 < casts[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    exact = build(**changes)
    assert with_fixed_weights(exact) is exact  # in float64 nothing can be prepared


@pytest.mark.parametrize("changes", [dict(), dict(div_val=2, tie_projs=[False, True, False]),
                                     dict(tie_weight=False, positions=Positions.rotary)], ids=str)  # fmt: skip
def test_weights_that_are_packed_once_give_the_same_losses_and_probabilities(changes, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    for module in ("txl.model.linear", "txl.evaluate.fixed_weights"):
        monkeypatch.setattr(f"{module}.has_avx512", lambda: True)
    model, tokens, geometry = build(**changes).float(), stream(2, 60), Geometry(4, 20)
    fixed = with_fixed_weights(model)
    assert all(layer.attention.qkv.weight.is_mkldnn for layer in fixed.layers)
    assert all(weight.is_mkldnn for weight, _ in fixed.softmax.fixed_weights)
    cached = [CachedTransformerXL(one, geometry) for one in (fixed, model)]
    found, expected = (losses(one, tokens, geometry) for one in cached)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    hidden = torch.randn(3, model.d_model)
    with torch.no_grad():
        torch.testing.assert_close(*(one.log_prob(hidden) for one in cached), rtol=1e-6, atol=1e-5)
        totals = [one.total_loss(hidden[None], tokens[:1, :3])[1] for one in cached]
    torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-6)


def test_the_state_of_a_program_is_in_half_precision_under_autocast_and_changes_no_loss():
    model, tokens, geometry = build().float(), stream(2, 60), Geometry(4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        step = CachedStep(model, geometry)
        state = step.initial_state(2)
        wide = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in state)
        program, found = FixedShapeProgram(step, step), []
        for initial in (state, wide):
            memory, losses_of_segments = initial, []
            for begin in range(0, 40, 4):
                input, target = tokens[:, begin : begin + 4], tokens[:, begin + 1 : begin + 5]
                loss, memory = program(input, target, memory)
                losses_of_segments.append(loss)
            found.append(torch.cat(losses_of_segments, 1))
            dtypes = {tensor.dtype for tensor in memory[:2]}
            assert dtypes == ({torch.bfloat16} if initial is state else {torch.float32})
    assert torch.equal(*found)


@pytest.mark.parametrize("positions", [Positions.absolute, Positions.absolute_per_layer])
def test_absolute_positions_are_refused_with_the_remedy(positions):
    with pytest.raises(ConfigError, match="runtime=eager"):
        CachedTransformerXL(build(positions=positions))


def test_an_extended_context_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="ext_len=2 needs runtime=eager"):
        CachedTransformerXL(build(), Geometry(4, 8, ext_len=2))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=5, max_size=14),
    mem_len=st.integers(0, 15),
    clamp_len=st.sampled_from([-1, 5]),
    same_length=st.booleans(),
    backend=st.sampled_from([AttentionBackend.eager, AttentionBackend.sdpa]),
    positions=st.sampled_from([Positions.relative, Positions.rotary]),
)
def test_segments_of_any_length_find_their_way_round_the_ring(
    lengths, mem_len, clamp_len, same_length, backend, positions
):
    """Also where a segment crosses the ring's end, or leaves slots behind that the memory has forgotten."""
    clamp_len = -1 if positions is Positions.rotary else clamp_len
    geometry, tokens = Geometry(6, mem_len, 0, clamp_len, same_length and mem_len > 0), stream(2, sum(lengths))
    eager, model = build(positions=positions), build(positions=positions, backend=backend)
    cached, mems, cache = CachedTransformerXL(model), [], []
    with torch.no_grad():
        for segment in tokens[:, :-1].split(lengths, dim=1):
            expected, mems = eager(segment, mems, geometry)
            hidden, cache = cached(segment, cache, geometry)
            torch.testing.assert_close(hidden, expected, rtol=1e-10, atol=1e-12)
            assert len(cache) == (mems[0].shape[1] if mems else 0)


def test_the_cache_is_as_large_as_stated():
    """Keys and values of mem_len + tgt_len tokens, not a byte more; nothing grows or moves while reading."""
    cached, geometry, B = CachedTransformerXL(build()), Geometry(8, 64), 3
    cache, places = [], set()
    for segment in stream(B, 40 * 8 - 1).split(8, dim=1):
        _, cache = cached(segment, cache, geometry)
        places.add((cache.key.data_ptr(), cache.value.data_ptr()))
    assert cache.key.nbytes + cache.value.nbytes == 2 * 2 * B * (64 + 8) * 2 * 8 * 8  # 2 L B (M + T) N H bytes
    assert len(places) == 1 and len(cache) == 64


def allocated(read) -> tuple[int, list[int]]:
    """Bytes that `read()` allocates: the most that exist at once, and every single tensor's (negative: freed)."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = read()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del kept
    return max(itertools.accumulate(sizes)), sizes


@pytest.mark.parametrize("B", [1, 4])
def test_what_is_allocated_is_what_is_stated(B):
    """Beyond the weights: the ring and the largest activation, + 20 %; with one text, the projected positions as well.

    Sizes stand to each other as those of the base model do.
    """
    geometry = Geometry(8, 88 - 8, 0, 50, True)
    shape = dict(n_layer=8, n_head=4, d_model=64, d_head=16, d_inner=256)
    model = TransformerXL(model_config(**shape), 1600, [1200], 88).eval()
    ids = torch.randint(0, 1600, (B, 20 * 8 + 1))

    def read():
        cached, cache = CachedTransformerXL(model, geometry), []
        losses = LossSum(cached, at_least=1)
        for begin in range(0, 20 * 8, 8):
            input, target = ids[:, begin : begin + 8], ids[:, begin + 1 : begin + 9]
            cache = run_segment(cached, input, target, cache, geometry, losses)
        return cached, cache

    with torch.no_grad():
        most, sizes = allocated(read)
    ring = 2 * 8 * B * 88 * 4 * 16 * 4  # 2 L B (M + T) N H bytes
    positions = 8 * (50 + 1) * 4 * 16 * 4  # L R N H bytes, as constant as weights
    activation = max(size for size in sizes if size < ring / 2)
    stated = ring + activation + (positions if B == 1 else 0)
    assert sizes.count(ring // 2) == 2 and sizes.count(positions // 8) >= 8  # keys and values; of every layer
    assert ring + activation < most <= 1.2 * stated


LOAD = """
import sys, torch
kind, file, arguments, result = sys.argv[1:]
load = torch.jit.load if kind == "torchscript" else torch._inductor.aoti_load_package
program, memory, losses = load(file), None, []
inputs, targets, memory = torch.load(arguments)
for input, target in zip(inputs, targets):
    loss, *memory = program(input, target, *memory)
    losses.append(loss)
assert not any(name.startswith("txl") for name in sys.modules)
torch.save(torch.cat(losses, dim=1), result)
"""


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("positions", [Positions.relative, Positions.rotary])
def test_a_program_gives_the_same_losses_in_a_process_that_never_imports_txl(kind, positions, tmp_path):
    clamp_len = 9 if positions is Positions.relative else -1
    model, geometry, B = build(div_val=2, positions=positions).float(), Geometry(4, 12, 0, clamp_len, True), 2
    tokens = stream(B, 40)
    expected = losses(model, tokens, geometry)
    step, file = CachedStep(model, geometry), tmp_path / "step.pt2"
    program = FixedShapeProgram(step, make_program(step, Runtime[kind], B, str(file)))
    memory, ours = [], []
    for begin in range(0, 40, 4):
        loss, memory = program(tokens[:, begin : begin + 4], tokens[:, begin + 1 : begin + 5], memory)
        ours.append(loss)
    torch.testing.assert_close(torch.cat(ours, dim=1), expected, rtol=1e-5, atol=1e-5)
    pairs = [[part.contiguous() for part in ids.split(4, dim=1)] for ids in (tokens[:, :-1], tokens[:, 1:])]
    torch.save([*pairs, list(step.initial_state(B))], tmp_path / "arguments.pt")
    arguments = [kind, str(file), str(tmp_path / "arguments.pt"), str(tmp_path / "losses.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *arguments], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "losses.pt"), expected, rtol=1e-5, atol=1e-5)


def test_a_program_is_used_for_nothing_but_what_it_was_made_for(tmp_path):
    """Its shapes and weights are fixed: with others it would answer all the same."""
    file, model, geometry = tmp_path / "step.ts", build(), Geometry(4, 8)
    make_program(CachedStep(model, geometry), Runtime.torchscript, 2, str(file))
    make_program(CachedStep(model, geometry), Runtime.torchscript, 2, str(file))  # loaded
    for other, batch_size, message in (
        (CachedStep(model, geometry), 3, "was made for batch_size=2, not 3"),
        (CachedStep(model, Geometry(4, 9)), 2, "was made for mem_len=8, not 9"),
        (CachedStep(build(seed=1), geometry), 2, "was made for other weights"),
        (CachedStep(build().float(), geometry), 2, "was made for precision=float64, not float32"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_program(other, Runtime.torchscript, batch_size, str(file))
    file.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is no program of runtime=torchscript"):
        make_program(CachedStep(model, geometry), Runtime.torchscript, 2, str(file), trust=True)
    (tmp_path / "step.ts.json").unlink()
    with pytest.raises(ConfigError, match="has no step.ts.json"):
        make_program(CachedStep(model, geometry), Runtime.torchscript, 2, str(file))


class Recorded(TorchDispatchMode):
    """What a CUDA graph is, without CUDA: operations on fixed tensors, to be done again at the same addresses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            again = tree_leaves(function(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """A stand-in for CUDA's graphs; what it shows of CUDA itself is that addresses and order are right.

    The list tells what was run before capturing, and what was captured.
    """
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    order = []

    def capture(graph, pool):
        order.append("capture")
        assert not torch.is_autocast_cache_enabled()  # what it keeps would lie in the graph's memory
        return graph

    monkeypatch.setattr(torch.cuda, "graph", capture)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(order.append("warm")))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return order


@pytest.mark.parametrize("positions", [Positions.relative, Positions.rotary])
def test_graphs_compute_the_same_from_every_place_in_the_ring(positions, order):
    clamp_len = 9 if positions is Positions.relative else -1
    model, geometry, tokens = build(positions=positions), Geometry(4, 10, 0, clamp_len, True), stream(2, 70)
    graphed, cache = GraphedTransformerXL(model, geometry), []
    eager, mems = build(positions=positions), []
    with torch.no_grad():
        for segment in tokens[:, :-1].split(4, dim=1):  # the last one is shorter
            expected, mems = eager(segment, mems, geometry)
            hidden, cache = graphed(segment, cache, geometry)
            torch.testing.assert_close(hidden, expected, rtol=1e-10, atol=1e-12)
    assert len(cache.graphs) == count_graphs(geometry) == 7
    assert order == ["warm", "capture"] * 7 and torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("changes", [dict(), dict(div_val=2, tie_projs=[False, True, False])], ids=str)
def test_the_losses_of_a_few_tokens_are_a_graph_with_the_same_numbers(changes, order, monkeypatch):
    monkeypatch.setattr("txl.evaluate.kv_cache.MOST_TOKENS_IN_GRAPH", 8)
    model, geometry, tokens = build(**changes), Geometry(4, 8), stream(2, 70)
    sums = [LossSum(kind(model, geometry), at_least=1) for kind in (GraphedTransformerXL, CachedTransformerXL)]
    for total in sums:
        memory = []
        with torch.no_grad():
            for begin in range(0, 70, 4):
                input, target = tokens[:, begin : begin + 4], tokens[:, begin + 1 : begin + 5]
                memory = run_segment(total.model, input[:, : target.shape[1]], target, memory, geometry, total)
    assert sums[0].total.item() == pytest.approx(sums[1].total.item(), rel=1e-10) and sums[0].tokens == sums[1].tokens
    assert len(sums[0].model.loss_graphs) == 2 == order.count("capture") - count_graphs(geometry)  # two lengths
    hidden = torch.randn(2, 5, model.d_model, dtype=torch.float64)
    sums[0].model.total_loss(hidden, tokens[:, :5])  # more than fit into a graph
    assert len(sums[0].model.loss_graphs) == 2
