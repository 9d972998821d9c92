"""Which runs are one run, and what a resume may change."""

import pytest

from tests.support.configurations import composed
from txl.config.compose import from_dict, to_dict
from txl.config.config_hash import config_hash
from txl.config.data import DataConfig
from txl.config.resume_changes import resume_differences

BASE = ["model=small", "data=ptb", "hardware=cpu"]
SAME_RUN = """
    seed=3 name=other runs=elsewhere run_dir=here resume=auto sample_tokens=9 deterministic=true gpus=2
    hardware=h200 tracking=wandb checkpoint.interval=7 evaluation.mem_len=9 train.micro_batch_size=4
    train.grad_accum_steps=2 train.log_interval=1 train.time_limit_minutes=3 train.target_perplexity=20
    train.swap_mem=true valid.interval=99 valid.enabled=false debug=true data.path=moved data.cache=elsewhere
    train.first_rank_batch_size=2 scheduler.max_step=2000 data.shards=2
"""
OTHER_RUN = """
    data.eos=END data.unk=OTHER data.sentences=true
    model.n_layer=5 model.dropout=0.2 data=wt2 data.lower_case=true data.cutoffs=[100] train.batch_size=8
    train.tgt_len=32 train.mem_len=0 train.clip=1 train.roll=true train.varlen=true train.sampled_softmax=9
    train.shuffle_len=64
    valid.tgt_len=32 valid.batch_size=8
    optimizer=lamb optimizer.lr=0.5 scheduler.warmup_step=7 scheduler=constant precision=bf16 train.max_step=3000
    optimizer.lr_scale=["embedding.*=0.5"]
"""


@pytest.fixture(scope="module")
def base():
    return composed(*BASE)


@pytest.mark.parametrize("override", SAME_RUN.split())
def test_what_cannot_change_the_mathematics_keeps_the_run_folder(base, override):
    changed = composed(*BASE, override)
    assert config_hash(changed) == config_hash(base)
    differences = resume_differences(to_dict(base), to_dict(changed))
    assert differences == (["seed was 1111, is 3"] if override == "seed=3" else [])


@pytest.mark.parametrize("override", OTHER_RUN.split())
def test_what_changes_the_mathematics_is_another_run(base, override):
    changed = composed(*BASE, override)
    assert config_hash(changed) != config_hash(base)
    differences = resume_differences(to_dict(base), to_dict(changed))
    key, _, value = override.partition("=")
    expected = {"train.max_step": "scheduler.max_step=2000", "data": "data.name was ptb, is wt2"}.get(key, f"{key}")
    assert any(expected in difference for difference in differences), differences


def test_own_files_name_the_run_but_may_move():
    one, other = (composed("data=text", f"data.file={name}") for name in ("a.txt", "b.txt"))
    assert config_hash(one) != config_hash(other)
    assert config_hash(one) != config_hash(composed("data=text", "data.file=a.txt", "data.path=folder"))
    assert resume_differences(to_dict(one), to_dict(other)) == []


def test_a_longer_run_keeps_the_folder_where_the_curve_does_not_end_with_it(base):
    for fixed in (["scheduler=constant"], ["scheduler=inv_sqrt"], ["scheduler.max_step=2000"], ["scheduler=dev_perf"]):
        short, long = (composed(*BASE, *fixed, f"train.max_step={n}") for n in (1000, 2000))
        assert config_hash(short) == config_hash(long)
        assert resume_differences(to_dict(short), to_dict(long)) == []
        assert resume_differences(to_dict(long), to_dict(short)) == [
            "train.max_step was 2000, is 1000: it may only rise"
        ]


@pytest.mark.parametrize("schedule", ["scheduler=cosine", "scheduler=linear"])
def test_a_longer_run_whose_curve_ends_with_it_names_the_remedy(schedule):
    base = composed(*BASE, schedule)
    longer = composed(*BASE, schedule, "train.max_step=4000")
    assert config_hash(base) != config_hash(longer)
    (difference,) = resume_differences(to_dict(base), to_dict(longer))
    assert "set scheduler.max_step=2000 to keep the learning rate's curve" in difference
    kept = composed(*BASE, schedule, "train.max_step=4000", "scheduler.max_step=2000")
    assert resume_differences(to_dict(base), to_dict(kept)) == []


def test_the_plateau_counts_validations():
    often, seldom = (composed(*BASE, "scheduler=dev_perf", f"valid.interval={n}") for n in (10, 20))
    assert config_hash(often) != config_hash(seldom)
    assert resume_differences(to_dict(often), to_dict(seldom)) == ["valid.interval was 10, is 20"]


def test_going_to_several_nodes_says_which_values_would_change():
    one = composed("model=large", "hardware=dgx2", "dry_run=true")
    many = composed("model=large", "hardware=dgx2", "dry_run=true", "nodes=8")
    differences = resume_differences(to_dict(one), to_dict(many))
    assert "optimizer.lr was 0.01, is 0.02" in differences
    same = composed("model=large", "hardware=dgx2", "dry_run=true", "nodes=8", "recipe=single_node")
    assert resume_differences(to_dict(one), to_dict(same)) == []


def test_an_option_that_came_with_a_later_version_does_not_stop_a_resume(base):
    old = to_dict(base)
    old["train"] = {key: value for key, value in old["train"].items() if key != "clip_nonemb"}
    assert resume_differences(old, to_dict(base)) == []


EARLIER_HASHES = {  # if a new option changes these, declare it with bounds.added
    "": "53c83cd7",
    "experiment=demo train.max_step=600 optimizer.lr=0.001": "539f7e09",
    "model=large hardware=dgx2 nodes=8 dry_run=true": "badbb93a",
    "data=text data.train=a.txt data.valid=b.txt optimizer=adam": "0d153d9f",
    "data=enwik8 model=base": "31c5b0e5",
}


@pytest.mark.parametrize("overrides", EARLIER_HASHES)
def test_runs_of_earlier_versions_keep_their_folder(overrides):
    assert config_hash(composed(*overrides.split())) == EARLIER_HASHES[overrides]


def test_options_that_were_removed_are_ignored_in_a_stored_configuration(base):
    stored = to_dict(base)
    stored["data"] |= {"url": "https://example.org/text.zip", "sha256": None}
    assert from_dict(stored) == base
    assert from_dict(stored["data"], DataConfig) == base.data
    assert resume_differences(stored, to_dict(base)) == []
