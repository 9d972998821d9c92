"""Attention: the backends agree, and recomputing changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import model_config
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend, Positions
from txl.model.transformer import TransformerXL


def outputs(model: TransformerXL, geometry: Geometry, input: torch.Tensor, seed: int = 0) -> dict:
    """Hidden states, memories and every gradient over three segments."""
    torch.manual_seed(seed)
    mems, total, found = [], 0.0, {}
    for segment in input:
        hidden, mems = model(segment, mems, geometry)
        total = total + (hidden * torch.linspace(0, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum()
    total.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"hidden": hidden.detach(), "mems": mems}


def build(dtype=torch.float64, backend=AttentionBackend.eager, recompute=False, **changes) -> TransformerXL:
    torch.manual_seed(3)
    changes = dict(tie_weight=False) | changes
    return TransformerXL(model_config(**changes), 30, [10], 40, backend, recompute).to(dtype)


geometries = st.builds(
    Geometry,
    tgt_len=st.integers(1, 9),
    mem_len=st.integers(0, 12),
    ext_len=st.integers(0, 3),
    clamp_len=st.sampled_from([-1, 1, 4, 30]),
    same_length=st.booleans(),
)


@settings(deadline=None, max_examples=12)
@given(geometry=geometries, positions=st.sampled_from(Positions), batch=st.integers(1, 3))
def test_sdpa_equals_eager_in_outputs_memories_and_every_gradient(geometry, positions, batch):
    if geometry.same_length and geometry.mem_len == 0:
        geometry = Geometry(geometry.tgt_len, 1, geometry.ext_len, geometry.clamp_len, True)
    input = torch.randint(30, (3, batch, geometry.tgt_len + geometry.ext_len))
    eager = outputs(build(positions=positions), geometry, input)
    sdpa = outputs(build(positions=positions, backend=AttentionBackend.sdpa), geometry, input)
    torch.testing.assert_close(sdpa, eager, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_equals_eager_in_lower_precision(dtype):
    geometry, input = Geometry(8, 8), torch.randint(30, (3, 2, 8))
    found = []
    for backend in (AttentionBackend.eager, AttentionBackend.sdpa):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found.append(outputs(build(torch.float32, backend), geometry, input)["hidden"])
    torch.testing.assert_close(*found, **(dict(rtol=0.05, atol=0.1) if dtype is torch.bfloat16 else {}))


def test_recomputing_gives_the_same_numbers_with_dropout_and_keeps_less():
    geometry, input = Geometry(8, 8), torch.randint(30, (3, 2, 8))
    found, kept = [], []
    for recompute in (False, True):
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = build(dropout=0.1, dropatt=0.1, recompute=recompute).train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found.append(outputs(model, geometry, input, seed=5))
        kept.append(sum(sizes.values()))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert kept[1] < kept[0]
