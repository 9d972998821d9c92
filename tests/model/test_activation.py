"""GELU in the feed-forward part: what it computes, every runtime, and the formats that do not know it."""

import json

import pytest
import torch

from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import write_corpus
from tests.support.models import model_config
from tests.support.tiny_runs import TINY_RUN
from txl.checkpoint.exchange import export_model, import_model
from txl.config.model import Activation
from txl.errors import ConfigError
from txl.model.transformer import FeedForward


def test_each_unit_is_multiplied_by_the_probability_of_a_smaller_normal_variable():
    part, x = FeedForward(model_config(activation=Activation.gelu)).double(), torch.randn(2, 3, 16, dtype=torch.float64)
    inner = part.inner(x)
    probability = torch.distributions.Normal(0.0, 1.0).cdf(inner)
    torch.testing.assert_close(part(x), part.norm(x + part.outer(inner * probability)), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of 12 steps with GELU."""
    folder = tmp_path_factory.mktemp("gelu")
    train_here(
        *write_corpus(folder / "text"), *TINY_RUN, "model.activation=gelu", "train.max_step=12", f"run_dir={folder}/run"
    )
    return folder / "run"


@pytest.mark.parametrize("runtime", ["cached", "torchscript"])
def test_every_runtime_evaluates_to_the_same_loss(runtime, trained, tmp_path):
    losses = []
    for name in ("eager", runtime):
        file = tmp_path / f"{name}.json"
        evaluate_here(f"checkpoint={trained}", "mem_len=13", "precision=fp64", f"runtime={name}", f"json={file}")
        losses.append(json.loads(file.read_text())["test"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_an_export_to_safetensors_keeps_it_and_the_references_format_is_refused(trained, tmp_path):
    export_model(trained, tmp_path / "exported", "safetensors")
    import_model(tmp_path / "exported", tmp_path / "imported")
    evaluate_here(f"checkpoint={tmp_path}/imported", f"json={tmp_path}/back.json", "split=test")
    evaluate_here(f"checkpoint={trained}", f"json={tmp_path}/before.json", "split=test")
    back, before = (json.loads((tmp_path / f"{name}.json").read_text())["test"]["loss"] for name in ("back", "before"))
    assert back == before
    with pytest.raises(ConfigError, match="model.activation=gelu does not exist in the reference's format"):
        export_model(trained, tmp_path / "theirs.pt", "reference")
    assert not (tmp_path / "theirs.pt").exists()
