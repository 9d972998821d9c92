"""Every impossible configuration has one line that says so."""

import pytest

from tests.support.configurations import composed
from tests.support.mistakes import mistakes
from txl.config.model import Positions
from txl.config.optimizer import OptimizerName
from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError


@mistakes("configuration")
def test_impossible_configurations_are_refused_in_one_line(mistake, answer, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError) as error:
        composed(*mistake.split())
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*OptimizerName, *Positions])
def test_every_optimizer_and_positional_scheme_states_its_facts(name):
    assert name.facts is not None


ACCEPTED = [
    "train.max_step=500 scheduler.max_step=40000",  # the beginning of a longer curve
    "scheduler=constant scheduler.warmup_step=50000",  # a run may end within its warm-up
    "scheduler=inv_sqrt train.max_step=10",
    "train.mem_len=0 train.ext_len=64 valid.tgt_len=256",
    "model.positions=shaw model.d_model=511",
    "model.positions=absolute_per_layer evaluation.clamp_len=-1",
    "model.positions=rotary evaluation.clamp_len=-1 model.d_model=511",
    "model.adaptive=false data.cutoffs=[5,3000]",
    "nodes=2 hardware=cpu dry_run=true",
    "optimizer=sgd optimizer.momentum=0.9",
    "data=text data.file=a data.split=[.9,.1]",
    "train.sampled_softmax=8192 model.adaptive=false optimizer=adagrad",
    'optimizer.lr_scale=["layers.*.norm.*=0","*.bias=2e-3","soft*=1.5"]',
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_unusual_configurations_that_work_are_accepted(overrides):
    assert isinstance(composed(*overrides.split()), RunConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tgt_len=0"], "tgt_len=0 must be above 0"),
        (["mem_len=-1"], "mem_len=-1 must be 0 or more"),
        (["clamp_len=0"], "clamp_len=0 must be above 0, or -1"),
        (["hardware=cpu", "precision=fp16"], "precision=fp16 needs a GPU"),
    ],
)
def test_impossible_evaluations_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed("checkpoint=x", *overrides, name="evaluate", kind=EvaluateConfig)
