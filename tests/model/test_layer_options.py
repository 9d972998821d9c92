"""GELU and value residuals: what they compute, every runtime, and the formats that do not know them."""

import json

import pytest
import torch

from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import build, model_config
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.exchange import export_model, import_model
from txl.config.geometry import Geometry
from txl.config.model import Activation
from txl.errors import ConfigError
from txl.model.attention import Attention
from txl.model.positions.scheme import SegmentPositions
from txl.model.transformer import FeedForward

OPTIONS = ["model.activation=gelu", "model.value_residual=true"]


def test_each_unit_is_multiplied_by_the_probability_of_a_smaller_normal_variable():
    part, x = FeedForward(model_config(activation=Activation.gelu)).double(), torch.randn(2, 3, 16, dtype=torch.float64)
    inner = part.inner(x)
    probability = torch.distributions.Normal(0.0, 1.0).cdf(inner)
    torch.testing.assert_close(part(x), part.norm(x + part.outer(inner * probability)), rtol=1e-6, atol=1e-6)


def test_each_head_adds_its_share_of_the_first_layers_values():
    model = build(value_residual=True)
    plain, later = Attention(model_config()).double(), model.layers[1].attention
    assert later.value_factors is not None
    plain.load_state_dict({name: value for name, value in later.state_dict().items() if name != "value_factors"})
    h, memory, first_value = (torch.randn(1, *size).double() for size in [(3, 16), (2, 16), (2, 5, 8)])
    positions = SegmentPositions(model.positions, model.positions.encode(5, Geometry(3, 2), h), None)
    query, key, value = plain.project(torch.cat([memory, h], dim=1))
    value = torch.stack([value[:, n] + later.value_factors[n] * first_value[:, n] for n in range(2)], dim=1)
    keys = model.positions.keys(1, positions.encoding, plain.position)
    update = plain.attend(query[:, :, 2:], key, value, model.positions, 1, keys, None)
    expected = plain.add(h, update)
    found, handed_on = later(h, memory, 1, positions, first_value)
    torch.testing.assert_close(found, expected)
    assert handed_on is None


def test_value_residuals_with_factors_of_zero_are_the_plain_model():
    residual, plain = build(value_residual=True), build()
    with torch.no_grad():
        residual.layers[1].attention.value_factors.zero_()
    own = {name: value for name, value in residual.state_dict().items() if not name.endswith("value_factors")}
    plain.load_state_dict(own)
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(residual(ids, [], Geometry(12, 0))[0], plain(ids, [], Geometry(12, 0))[0])


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request, tmp_path_factory):
    """The folder of a run of 12 steps with one of the options, and the option."""
    folder = tmp_path_factory.mktemp("option")
    train_here(*write_corpus(folder / "text"), *TINY_RUN, request.param, "train.max_step=12", f"run_dir={folder}/run")
    return folder / "run", request.param


@pytest.mark.parametrize("runtime", ["cached", "torchscript"])
def test_every_runtime_evaluates_to_the_same_loss(runtime, trained, tmp_path):
    losses = []
    for name in ("eager", runtime):
        file = tmp_path / f"{name}.json"
        evaluate_here(f"checkpoint={trained[0]}", "mem_len=13", "precision=fp64", f"runtime={name}", f"json={file}")
        losses.append(json.loads(file.read_text())["test"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_an_export_to_safetensors_keeps_it_and_the_references_format_is_refused(trained, tmp_path):
    run, option = trained
    export_model(run, tmp_path / "exported", "safetensors")
    import_model(tmp_path / "exported", tmp_path / "imported")
    evaluate_here(f"checkpoint={tmp_path}/imported", f"json={tmp_path}/back.json", "split=test")
    evaluate_here(f"checkpoint={run}", f"json={tmp_path}/before.json", "split=test")
    back, before = (json.loads((tmp_path / f"{name}.json").read_text())["test"]["loss"] for name in ("back", "before"))
    assert back == before
    with pytest.raises(ConfigError, match=f"{option} does not exist in the reference's format"):
        export_model(run, tmp_path / "theirs.pt", "reference")
    assert not (tmp_path / "theirs.pt").exists()
