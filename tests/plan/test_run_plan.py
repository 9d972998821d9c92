"""How a batch is split, how big a model is, where a run goes."""

import json

import pytest

from tests.support.configurations import composed
from tests.support.made_data import write_lm1b
from txl.config.model import Positions
from txl.data.corpus import open_corpus
from txl.errors import ConfigError
from txl.plan import batch_split
from txl.plan.batch_split import with_global_batch
from txl.plan.memory_estimate import memory_terms
from txl.plan.parameter_count import layer_matrix_parameters, layer_parameters, other_parameters
from txl.plan.run_plan import make_plan


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No launcher, and nothing encoded yet."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)


def test_base_and_large_have_the_published_sizes():
    base, large = make_plan(composed()), make_plan(composed("model=large"))
    assert base.parameters == 191_950_298
    assert large.parameters == 285_167_482
    assert large.layer_parameters == 245_532_672


MODELS = {
    "relative": {},
    "untied_r": {"untie_r": True},
    "shaw": {"positions": Positions.shaw},
    "absolute": {"positions": Positions.absolute},
    "absolute_per_layer": {"positions": Positions.absolute_per_layer},
    "rotary": {"positions": Positions.rotary},
    "clusters": {"div_val": 2},
    "own_projections": {"div_val": 2, "tie_projs": [False, True, False]},
    "all_tied": {"div_val": 2, "tie_projs": [True]},
    "own_weights": {"div_val": 2, "tie_weight": False},
    "narrow": {"d_embed": 12},
    "narrow_tied": {"d_embed": 12, "tie_projs": [True]},
    "narrow_own_weights": {"d_embed": 12, "tie_weight": False},
    "full_softmax": {"adaptive": False},
    "pre_lnorm": {"pre_lnorm": True},
    "value_residual": {"value_residual": True},
}


@pytest.mark.parametrize("case", MODELS)
def test_parameters_are_counted_without_building_the_model(case):
    from tests.support.models import model_config
    from txl.model.transformer import TransformerXL

    model, train = model_config(**MODELS[case]), composed("train.tgt_len=8", "train.mem_len=8", "valid.tgt_len=8").train
    built = TransformerXL(model, 50, [10, 20], 16)
    counted = layer_parameters(model) + other_parameters(model, train, [10, 20], 50)
    assert counted == sum(p.numel() for p in built.parameters())
    assert layer_parameters(model) == sum(p.numel() for p in built.layers.parameters())
    assert layer_matrix_parameters(model) == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)


def test_the_micro_batch_is_the_whole_share_where_nothing_is_published():
    plan = make_plan(composed("hardware=h200"))
    assert (plan.world_size, plan.local_batch_size, plan.micro_batch_size, plan.grad_accum_steps) == (8, 32, 32, 1)


def test_a_local_batch_is_the_share_of_every_process():
    config = with_global_batch(composed("hardware=h200", "train.local_batch_size=64"))
    plan = make_plan(config)
    assert (plan.world_size, plan.local_batch_size, config.train.batch_size) == (8, 64, 512)
    assert plan.run_dir == make_plan(composed("hardware=h200", "train.batch_size=512")).run_dir  # the same run
    halved = with_global_batch(composed("hardware=h200", "gpus=4", "train.local_batch_size=64"))
    assert make_plan(halved).run_dir != plan.run_dir


def test_a_number_of_chunks_gives_the_micro_batch():
    plan = make_plan(composed("hardware=dgx1", "train.grad_accum_steps=4"))
    assert (plan.micro_batch_size, plan.grad_accum_steps) == (8, 4)
    assert plan.run_dir == make_plan(composed("hardware=dgx1")).run_dir


def test_an_explicit_micro_batch_wins_over_the_published_cap():
    plan = make_plan(composed("hardware=dgx1", "train.micro_batch_size=8"))
    assert (plan.micro_batch_size, plan.grad_accum_steps) == (8, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("gpus=3", "train.batch_size=256 must be a multiple of world_size = 3; use 255 or 258, or gpus=2"),
        ("nodes=3 gpus=1 dry_run=true", "must be a multiple of world_size = 3; use 255 or 258"),
        (
            "gpus=8 train.batch_size=248 train.micro_batch_size=24",
            "train.batch_size=248 must be a multiple of world_size * micro_batch_size = 8 * 24; use 192 or 384, "
            "or train.micro_batch_size=1",
        ),
        (
            "gpus=8 train.grad_accum_steps=5",
            "train.grad_accum_steps=5 must divide the 32 sequences of each process (train.batch_size=256); use 4 or 8",
        ),
        ("gpus=8 train.grad_accum_steps=64", "must divide the 32 sequences of each process"),
        ("gpus=8 train.batch_size=4", "must be a multiple of world_size = 8; use 8, or gpus=4"),
    ],
)
def test_a_batch_that_cannot_be_split_names_what_would_fit(overrides, message):
    with pytest.raises(ConfigError) as error:
        make_plan(composed("hardware=cpu", *overrides.split()))
    assert message in str(error.value)


def test_the_first_process_may_have_less_to_do():
    share = "train.first_rank_batch_size=16"
    plan = make_plan(composed("hardware=dgx1", share, "train.batch_size=240", "train.micro_batch_size=8"))
    assert (plan.first_rank_batch_size, plan.local_batch_size) == (16, 32)
    assert (plan.micro_batch_size, plan.grad_accum_steps) == (8, 4)
    assert "240 sequences" in str(plan) and "4 accumulation step(s) x micro batch 8; the first: 16" in str(plan)


def test_the_published_share_of_the_first_gpu_leaves_an_even_rest():
    plan = make_plan(composed("data=enwik8", "hardware=cpu", "gpus=4", "train.first_rank_batch_size=4"))
    assert (plan.first_rank_batch_size, plan.local_batch_size) == (4, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("gpus=1 train.first_rank_batch_size=16", "16 needs several processes; leave it out, or use gpus=2"),
        (
            "gpus=3 train.first_rank_batch_size=17",
            "leaves 239 of train.batch_size=256, no multiple of 2, for the other",
        ),
        ("gpus=3 train.first_rank_batch_size=17", "use 16"),
        ("gpus=4 train.batch_size=3 train.first_rank_batch_size=1", "use train.batch_size=4"),
        (
            "gpus=3 train.first_rank_batch_size=16 train.micro_batch_size=32",
            "train.micro_batch_size=32 must divide 120, what train.first_rank_batch_size=16 leaves for every other "
            "process; use 30",
        ),
    ],
)
def test_a_first_share_that_leaves_no_even_rest_names_what_would_fit(overrides, message):
    with pytest.raises(ConfigError) as error:
        make_plan(composed("hardware=cpu", *overrides.split()))
    assert message in str(error.value)


def test_segments_of_drawn_length_need_room_for_the_longest():
    shorter, longer = composed("model.positions=shaw"), composed("model.positions=shaw", "train.varlen=true")
    one, other = (make_plan(config) for config in (shorter, longer))
    assert other.parameters - one.parameters == 16 * 15 * (512 + 8)  # keys and biases of 15 more distances
    assert other.memory_gb > one.memory_gb


def test_auto_takes_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(batch_split, "detect_gpus", lambda: ("NVIDIA H200", 4))
    assert make_plan(composed()).gpus_per_node == 4
    assert make_plan(composed("gpus=2", "precision=fp16")).gpus_per_node == 2
    with pytest.raises(ConfigError, match="gpus=8 but this machine has 4; use gpus=4"):
        make_plan(composed("gpus=8"))
    monkeypatch.setattr(batch_split, "detect_gpus", lambda: ("cpu", 0))
    assert make_plan(composed()).gpus_per_node == 1
    assert make_plan(composed("gpus=2")).gpus_per_node == 2
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU, and this machine has none; use precision=bf16"):
        make_plan(composed("precision=fp16"))


def test_torchrun_decides_how_many_processes_there_are(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert make_plan(composed("hardware=cpu")).world_size == 4
    with pytest.raises(ConfigError, match="gpus=16 but the launcher started 4; set gpus=4"):
        make_plan(composed("hardware=dgx2", "cluster=local"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="nodes=1 but the launcher started 2; set nodes=2"):
        make_plan(composed("hardware=cpu"))
    assert make_plan(composed("hardware=cpu", "nodes=2")).world_size == 4


def test_the_plan_can_be_read_and_stored():
    plan = make_plan(composed("model=large", "hardware=dgx2", "nodes=8", "precision=fp16", "dry_run=true"))
    text = str(plan)
    for part in (
        "128 = 8 node(s) x 16 V100",
        "multi_node",
        "512 sequences",
        "285,167,482",
        "25,000 steps",
        "micro batch 4",
    ):
        assert part in text
    assert json.loads(json.dumps(plan.to_dict()))["world_size"] == 128
    assert plan.total_tokens == 512 * 384 * 25_000


def test_a_vocabulary_that_is_not_built_yet_leaves_sizes_open():
    plan = make_plan(composed("experiment=demo"))
    assert plan.parameters is None and plan.memory_gb is None
    assert "vocabulary not built yet" in str(plan)
    assert make_plan(composed("experiment=demo"), vocab_size=200).parameters > plan.layer_parameters


def test_an_encoded_text_lends_its_vocabulary_to_the_plan(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("one two three\n" * 9)
    config = composed("data=text", "data.train=train.txt", "data.valid=valid.txt", "data.cache=cache")
    assert make_plan(config).parameters is None
    assert not (tmp_path / "cache").exists()  # a plan encodes nothing
    vocabulary = open_corpus(config.data).vocab
    assert make_plan(config) == make_plan(config, len(vocabulary))
    assert make_plan(config).parameters is not None


def test_a_vocabulary_that_a_file_holds_is_known_and_checked_before_anything_is_encoded(tmp_path):
    config = composed(*write_lm1b(tmp_path), f"data.cache={tmp_path}/cache", "data.vocab_size=793470", "model=small")
    assert make_plan(config) == make_plan(config, 20) != make_plan(config, 793_470)
    with open(tmp_path / "1b_word_vocab.txt", "a") as file:
        file.write("cat 9\n")
    with pytest.raises(ConfigError, match="line 21: 'cat' is in line 5 already"):
        make_plan(config)
    (tmp_path / "1b_word_vocab.txt").unlink()
    assert make_plan(config) == make_plan(config, 793_470)  # as published, until it is there
    assert not (tmp_path / "cache").exists()


def test_cutoffs_beyond_the_vocabulary_are_refused_once_it_is_known():
    config = composed("data=text", "data.file=a.txt", "data.cutoffs=[5000]")
    with pytest.raises(ConfigError, match="data.cutoffs=.5000. must end below the vocabulary's size 900"):
        make_plan(config, vocab_size=900)


def test_a_sample_larger_than_the_vocabulary_is_refused_once_it_is_known():
    config = composed("data=text", "data.file=a.txt", "train.sampled_softmax=901", "optimizer=adam")
    with pytest.raises(ConfigError, match="train.sampled_softmax=901 must be at most the vocabulary's size 900"):
        make_plan(config, vocab_size=900)
    assert make_plan(config, vocab_size=901).memory_gb > 0


def test_the_run_folder_has_name_hash_and_seed():
    plan = make_plan(composed("experiment=demo", "seed=7"))
    assert plan.run_dir.startswith("runs/demo/") and plan.run_dir.endswith("-s7")
    assert make_plan(composed("experiment=demo", "run_dir=/tmp/here")).run_dir == "/tmp/here"


def test_memory_grows_with_what_it_is_made_of():
    def terms(*overrides):
        config = composed("hardware=h200", "gpus=1", "train.micro_batch_size=16", *overrides)
        return memory_terms(config, 267_735, 191_950_298, 16, 256, 1)

    plain = terms()
    assert plain["weights"] == plain["optimizer"] / 2 == 4 * 191_950_298
    assert plain["weights"] < plain["gradients"] < 2 * plain["weights"]  # of all but the layers twice: accumulation
    assert terms("precision=bf16")["activations"] < plain["activations"]
    assert terms("optimizer=sgd", "scheduler.eta_min=0")["optimizer"] == 0
    assert terms("train.mem_len=0")["mems"] == terms("train.swap_mem=true")["mems"] == 0
    assert plain["mems"] == terms("hardware=cpu", "train.swap_mem=true")["mems"] > 0
    assert terms("train.tgt_len=384")["logits"] == plain["logits"] == 2 * 4 * 2**25  # a chunk at a time
