"""recipe=: how a model is trained, whatever the model and the data are."""

import pytest

from tests.support.configurations import composed
from txl.config.model import Activation
from txl.config.optimizer import OptimizerName
from txl.config.schema import Recipe
from txl.plan.run_plan import make_plan


def test_the_published_recipe_is_the_default():
    config = composed()
    assert config.recipe is Recipe.auto
    assert make_plan(config).recipe == "single_node"


def test_modern_replaces_the_optimizer_of_a_model_and_keeps_its_lengths_and_batch():
    published, modern = composed("model=large", "data=enwik8"), composed("model=large", "data=enwik8", "recipe=modern")
    assert modern.optimizer.name is OptimizerName.muon
    assert not modern.scheduler.first_update_at_base_lr
    for key in ("batch_size", "max_step", "tgt_len", "mem_len"):
        assert getattr(modern.train, key) == getattr(published.train, key)
    assert make_plan(modern).recipe == "modern"


def test_modern_shuffles_pieces_of_sixteen_segments():
    assert composed("experiment=tinyshakespeare", "recipe=modern").train.shuffle_len == 16 * 64
    assert composed("model=large", "recipe=modern").train.shuffle_len == 16 * 384
    assert composed("recipe=modern", "train.shuffle_len=null").train.shuffle_len is None


def test_modern_has_a_memory_from_forty_percent_of_its_curve_on():
    assert composed("recipe=modern", "train.max_step=600").train.mem_from_step == 240
    assert composed("recipe=modern", "train.max_step=600", "scheduler.max_step=1000").train.mem_from_step == 400
    assert composed("recipe=modern", "train.mem_from_step=0").train.mem_from_step == 0
    assert composed().train.mem_from_step == 0


def test_moderns_rate_halves_with_eight_times_the_steps():
    rates = [composed("recipe=modern", f"train.max_step={steps}").optimizer.lr for steps in (2000, 16000, 600)]
    assert rates == [0.008, 0.004, 0.012]
    assert composed("recipe=modern", "train.max_step=16000", "optimizer.lr=0.01").optimizer.lr == 0.01


def test_a_longer_training_on_the_same_curve_keeps_moderns_rate_and_warm_up():
    short, long = (composed("recipe=modern", "scheduler.max_step=800", f"train.max_step={n}") for n in (400, 800))
    assert short.optimizer == long.optimizer and short.scheduler == long.scheduler
    assert long.scheduler.warmup_step == 40


@pytest.mark.parametrize("name", [name.name for name in OptimizerName])
def test_every_optimizer_goes_with_modern(name):
    config = composed("recipe=modern", f"optimizer={name}")
    used = config.optimizer.name.facts.options
    assert config.optimizer.momentum == (0.85 if "momentum" in used else None)
    assert config.optimizer.betas == ([0.9, 0.99] if "betas" in used else [])
    assert config.optimizer.eps == (1e-4 if "eps" in used else None)


def test_modern_predicts_the_word_after_the_next_in_its_first_steps_and_the_published_recipe_does_not():
    modern, published = composed("recipe=modern").train, composed().train
    assert (modern.multi_token_weight_at(0), modern.multi_token_weight_at(150)) == (0.5, 0.0)
    assert published.multi_token_weight_at(0) == 0.0
    assert composed("recipe=modern", "train.multi_token_weight=0").train.multi_token_weight_at(0) == 0.0


def test_modern_has_gelu_and_value_residuals_and_the_published_recipe_has_not():
    modern, published = composed("recipe=modern").model, composed().model
    assert (modern.activation, modern.value_residual) == (Activation.gelu, True)
    assert (published.activation, published.value_residual) == (Activation.relu, False)


def test_modern_replaces_the_optimizer_of_an_experiment():
    config = composed("experiment=wikitext-mini", "recipe=modern")
    assert (config.optimizer.name, config.train.max_step) == (OptimizerName.muon, 600)


def test_what_the_command_line_sets_wins_over_modern():
    config = composed("experiment=demo", "recipe=modern", "optimizer.lr=0.5", "model.dropout=0.2")
    assert (config.optimizer.lr, config.model.dropout) == (0.5, 0.2)


def test_modern_on_several_nodes_has_the_published_batch_for_several_nodes():
    config = composed("model=large", "hardware=dgxa100", "recipe=modern", "nodes=2")
    assert config.train.batch_size == 512
