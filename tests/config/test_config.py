"""Composition: groups, the published recipes, conversion."""

import json
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from tests.support.configurations import CONF, composed
from tests.support.source_code import names_read_in
from txl.config.compose import from_dict, to_dict
from txl.config.did_you_mean import dotted_keys
from txl.config.geometry import Geometry, train_geometry, valid_geometry
from txl.config.schema import EvaluateConfig, RunConfig, Split
from txl.config.tracking import enabled_sinks
from txl.errors import ConfigError
from txl.plan.run_plan import make_plan

PUBLISHED = Path(__file__).parents[1] / "published"
RECIPES = json.loads((PUBLISHED / "recipes.json").read_text())

# The original's name of an option -> ours.
TRAIN_KEYS = {
    "dataset": "data.name",
    "vocab": "data.vocab.name",
    "cutoffs": "data.cutoffs",
    "n_layer": "model.n_layer",
    "n_head": "model.n_head",
    "d_model": "model.d_model",
    "d_head": "model.d_head",
    "d_inner": "model.d_inner",
    "dropout": "model.dropout",
    "dropatt": "model.dropatt",
    "adaptive": "model.adaptive",
    "div_val": "model.div_val",
    "init": "model.init.name",
    "init_std": "model.init_std",
    "init_range": "model.init_range",
    "emb_init_range": "model.emb_init_range",
    "proj_init_std": "model.proj_init_std",
    "optim": "optimizer.name.name",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "betas": "optimizer.betas",
    "scheduler": "scheduler.name.name",
    "eta_min": "scheduler.eta_min",
    "warmup_step": "scheduler.warmup_step",
    "max_step_scheduler": "scheduler.max_step",
    "max_step": "train.max_step",
    "batch_size": "train.batch_size",
    "tgt_len": "train.tgt_len",
    "mem_len": "train.mem_len",
    "ext_len": "train.ext_len",
    "clip": "train.clip",
    "roll": "train.roll",
    "swap_mem": "train.swap_mem",
    "log_interval": "train.log_interval",
    "eval_tgt_len": "valid.tgt_len",
    "eval_interval": "valid.interval",
    "eval_batch_size": "valid.batch_size",
    "seed": "seed",
}
EVAL_KEYS = {
    "dataset": "data.name",
    "tgt_len": "evaluation.tgt_len",
    "mem_len": "evaluation.mem_len",
    "ext_len": "evaluation.ext_len",
    "clamp_len": "evaluation.clamp_len",
    "same_length": "evaluation.same_length",
    "batch_size": "evaluation.batch_size",
}
# What a block holds where it is silent. eta_min: the original's default, 0.001, is above its Adam recipes' own rate.
TRAIN_DEFAULTS = {
    "adaptive": False,
    "div_val": 1,
    "init": "normal",
    "init_std": 0.02,
    "init_range": 0.1,
    "emb_init_range": 0.01,
    "proj_init_std": 0.01,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "scheduler": "cosine",
    "eta_min": 0.0,
    "warmup_step": 0,
    "max_step_scheduler": None,
    "ext_len": 0,
    "clip": 0.25,
    "roll": False,
    "swap_mem": False,
    "log_interval": 10,
    "eval_interval": 5000,
    "eval_batch_size": 16,
    "seed": 1111,
}
EVAL_DEFAULTS = {"ext_len": 0, "clamp_len": -1, "same_length": False, "batch_size": 16}
# Published keys that no configuration here answers to, and why.
NOT_HERE = {
    "multi_gpu": "always DistributedDataParallel",
    "gpu0_bsz": "the first GPU's share changes no number: train.first_rank_batch_size=4 gives it on four GPUs",
}
OPTIMIZERS = {"jitlamb": "lamb"}  # one implementation here


def machine_blocks():
    """(model, overrides, published train block, published eval block) for every machine and precision."""
    for name in ("wt103_base", "wt103_large"):
        recipe = RECIPES[name]
        for kind in ("single_node", "multi_node"):
            for machine, block in recipe[kind].items():
                node, gpus, precision = machine.split("_")
                nodes = node.partition("dgx")[0] or "1"
                hardware = node.removeprefix(nodes) if kind == "multi_node" else node
                overrides = [f"hardware={hardware}", f"gpus={gpus.removesuffix('gpu')}", f"precision={precision}"]
                overrides.append(f"nodes={nodes}")
                if (kind, nodes) == ("multi_node", "1"):  # otherwise recipe=auto finds it
                    overrides.append("recipe=multi_node")
                train, evaluation = recipe["train"] | block["train"], recipe["eval"] | block["eval"]
                yield pytest.param(name, overrides, train, evaluation, id=f"{name}-{machine}")


def other_blocks():
    """(name, published train block, published eval block) of the recipes that say nothing about machines."""
    for name, recipe in RECIPES.items():
        if not name.startswith("wt103"):
            yield pytest.param(name, recipe["train"], recipe["eval"], id=name)


def assert_published(config, published: dict, keys: dict, defaults: dict) -> None:
    published = {key: value for key, value in published.items() if key not in NOT_HERE | {"fp16": "", "split": ""}}
    chunks = published.pop("batch_chunk", 1)
    assert published.keys() <= keys.keys()
    expected = defaults | published
    found = {key: attrgetter(keys[key])(config) for key in expected}
    assert found == {key: OPTIMIZERS.get(value, value) if key == "optim" else value for key, value in expected.items()}
    if keys is TRAIN_KEYS:
        assert make_plan(config).grad_accum_steps == chunks


@pytest.mark.parametrize(("name", "overrides", "train", "evaluation"), list(machine_blocks()))
def test_every_published_machine_block_composes(name, overrides, train, evaluation):
    precision = overrides[2].removeprefix("precision=")
    config = composed("dry_run=true", f"model={name.removeprefix('wt103_')}", *overrides)
    assert_published(config, train, TRAIN_KEYS, TRAIN_DEFAULTS)
    assert_published(config, evaluation, EVAL_KEYS, EVAL_DEFAULTS)
    assert train.get("fp16", False) == (config.precision.name.name == "fp16")
    assert config.precision.name.name == precision
    assert config.model.tie_projs == [False, True]  # the original sets it beside the cutoffs: all tails'
    assert config.scheduler.first_update_at_base_lr


@pytest.fixture
def much_memory(monkeypatch):
    """The published accumulation belongs to the published machines, not to the one that runs the tests."""
    monkeypatch.setattr("txl.plan.device_memory.main_memory_gb", lambda: None)


@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("recipe", ["single_node", "multi_node"])
@pytest.mark.parametrize(("name", "train", "evaluation"), list(other_blocks()))
def test_every_other_published_block_composes(name, train, evaluation, recipe):
    data, model = name.split("_")
    config = composed("hardware=cpu", f"model={model}", f"data={data}", f"recipe={recipe}")
    if "tie_projs" in train:  # one value for all clusters, where we have a list
        assert config.model.tie_projs == [train["tie_projs"]]
    train = {key: value for key, value in train.items() if key != "tie_projs"}
    assert_published(config, train | {"dataset": data}, TRAIN_KEYS, TRAIN_DEFAULTS)
    assert_published(config, evaluation | {"dataset": data}, EVAL_KEYS, EVAL_DEFAULTS)


@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize(
    ("experiment", "recipe", "block"),
    [
        ("trainbench_base", "wt103_base", "trainbench"),
        ("trainbench_large", "wt103_large", "trainbench"),
        ("trainbench_large", "wt103_large", "trainbench_multinode"),
    ],
)
def test_published_throughput_benchmarks_compose(experiment, recipe, block):
    scale = "multi_node" if block == "trainbench_multinode" else "single_node"
    config = composed(f"experiment={experiment}", f"recipe={scale}")
    assert_published(config, RECIPES[recipe]["train"] | RECIPES[recipe][block], TRAIN_KEYS, TRAIN_DEFAULTS)


def test_published_blocks_evaluate_on_test():
    assert composed("checkpoint=x", name="evaluate", kind=EvaluateConfig).split is Split.test
    assert {block["eval"].get("split", "test") for block in RECIPES.values()} == {"test"}


# --------------------------------------------------------------------------- choices


def test_train_alone_is_base_on_wikitext_103_in_fp32_on_this_machine():
    config = composed()
    assert (config.model.name, config.data.name, config.precision.name.name) == ("base", "wt103", "fp32")
    assert (config.hardware.name, config.cluster.name) == ("auto", "local")
    assert make_plan(config).parameters == 191_950_298


OPTIONS = [
    (group.name, option.stem)
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name not in ("published", "experiment", "site")  # chosen by others; of one machine
    for option in sorted(group.glob("*.yaml"))
]
FOR_OPTION = {
    "tf32": ["hardware=h200"],
    "fp16": ["hardware=h200"],
    "text": ["data.file=a.txt"],
    "ids": ["data.file=a.npy"],
    "slurm": ["hardware=cpu"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group, option):
    config = composed(f"{group}={option}", *FOR_OPTION.get(option, []))
    section = getattr(config, group)
    if group == "tracking":
        assert [sink.name for sink in enabled_sinks(section)] == ([] if option == "none" else [option])
    else:
        assert getattr(section.name, "name", section.name) == option


@pytest.mark.parametrize("experiment", [file.stem for file in sorted((CONF / "experiment").glob("*.yaml"))])
def test_every_experiment_composes_and_has_a_plan(experiment):
    assert make_plan(composed(f"experiment={experiment}")).world_size >= 1


def test_the_command_line_wins_over_recipe_data_and_experiment():
    config = composed("experiment=demo", "data=enwik8", "model=base", "optimizer=lamb", "optimizer.lr=0.5")
    assert (config.optimizer.name.name, config.optimizer.lr) == ("lamb", 0.5)
    assert config.model.n_layer == 12  # base as published on enwik8, though the experiment chose small on stdlib
    assert config.train.max_step == 1000  # the experiment's


def test_an_explicit_value_wins_over_the_recipe_of_several_nodes():
    config = composed("model=large", "nodes=8", "hardware=dgx2", "dry_run=true", "optimizer.lr=0.007")
    assert (config.optimizer.lr, config.train.batch_size) == (0.007, 512)


def test_data_without_a_published_recipe_takes_wikitext_103s():
    config = composed("model=large", "data=ptb")
    assert (config.model.n_layer, config.optimizer.lr, config.data.cutoffs) == (18, 0.01, [])


def test_own_text_needs_no_file_in_conf():
    config = composed("data=text", "data.file=a.txt", "data.split=[.8,.1,.1]", "data.vocab=char")
    assert (config.data.metric.name, config.data.split) == ("bpc", [0.8, 0.1, 0.1])
    assert composed("data=text", "data.train=a", "data.valid=b").data.metric.name == "ppl"


def test_what_is_known_of_a_data_set_as_words_holds_for_words_alone():
    words = composed("data=wt103").data
    assert (words.vocab_size, words.cutoffs, words.metric.name) == (267_735, [19_997, 39_997, 199_997], "ppl")
    pairs = composed("data=wt103", "data.vocab=bpe", "data.vocab_file=v.json", "data.merges_file=m.txt").data
    assert (pairs.vocab_size, pairs.cutoffs, pairs.metric.name) == (None, [], "ppl")
    assert composed("data=wt103", "data.vocab=byte").data.metric.name == "bpc"


REFERENCE = json.loads((PUBLISHED / "reference_curves.json").read_text())


@pytest.mark.parametrize("experiment", ["wikitext-mini", "tinyshakespeare"])
def test_parity_experiments_are_the_reference_curves_configurations(experiment):
    curve = next(curve for name, curve in REFERENCE.items() if name.startswith(experiment))
    config = composed(f"experiment={experiment}")
    published = {"optim": "lamb"} | curve["config"]
    assert {key: attrgetter(TRAIN_KEYS[key])(config) for key in published} == published
    assert make_plan(config, curve.get("vocab", 65)).parameters == curve["params"]
    assert config.train.roll and config.scheduler.first_update_at_base_lr
    same = (config.train.tgt_len, config.train.mem_len)
    assert valid_geometry(config) == train_geometry(config) == Geometry(*same)


# --------------------------------------------------------------------------- conversion


def test_a_configuration_survives_yaml_and_json():
    config = composed("model=large", "hardware=dgx2", "data=text", "data.file=a.txt", "tracking=wandb")
    values = to_dict(config)
    assert from_dict(yaml.safe_load(yaml.safe_dump(values))) == config
    assert from_dict(json.loads(json.dumps(values))) == config
    assert values["train"]["micro_batch_cap"]["dgx2"] == {"fp16": 8, "fp32": 8}
    evaluation = composed("checkpoint=x", name="evaluate", kind=EvaluateConfig)
    assert from_dict(to_dict(evaluation), EvaluateConfig) == evaluation


def test_an_fp16_configuration_can_be_read_on_a_machine_without_a_gpu():
    values = to_dict(composed("precision=fp16", "hardware=dgx1"))
    values["hardware"] |= {"name": "cpu", "gpus": 0}
    assert from_dict(values).precision.name.name == "fp16"


def test_a_damaged_config_file_is_refused_with_its_key():
    values = to_dict(composed())
    with pytest.raises(ConfigError, match="train.max_stp is not an option; did you mean train.max_step?"):
        from_dict(values | {"train": values["train"] | {"max_stp": 3}})
    with pytest.raises(ConfigError, match="train.max_step=x must be a whole number"):
        from_dict(values | {"train": values["train"] | {"max_step": "x"}})
    with pytest.raises(ConfigError, match="train.max_step has no value"):
        from_dict(values | {"train": {k: v for k, v in values["train"].items() if k != "max_step"}})
    with pytest.raises(ConfigError, match="the file is damaged"):
        from_dict(None)


def test_validation_memory_takes_what_shorter_segments_give_up():
    config = composed("train.tgt_len=192", "train.mem_len=192", "valid.tgt_len=64")
    assert valid_geometry(config) == Geometry(64, 320)
    config = composed("train.tgt_len=192", "train.mem_len=0", "train.ext_len=8", "valid.tgt_len=64")
    assert valid_geometry(config) == Geometry(64, 0, ext_len=136)
    assert str(Geometry(64, 640, 0, 400, True)) == "tgt_len 64 mem_len 640 clamp_len 400 same_length true"


def test_every_field_is_read_somewhere():
    """An option that nothing reads would promise what it does not do."""
    files = [*CONF.parent.glob("*.py"), *(CONF.parent / "txl").rglob("*.py")]
    read = names_read_in(path for path in files if path.stem not in ("rules", "choices"))
    fields = {key for kind in (RunConfig, EvaluateConfig) for key in dotted_keys(kind)}
    assert {key for key in fields if key.rpartition(".")[2] not in read} == set()
