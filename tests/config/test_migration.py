"""Every flag of the original has its place in docs/migration.md, and what stands there works."""

import re

import pytest

from tests.support.configurations import CONF, composed
from txl.cli.original_flags import DOCUMENT, answer_to_original_flags, original_flags
from txl.config.did_you_mean import dotted_keys
from txl.config.schema import EvaluateConfig, RunConfig

TABLE = CONF.parent / "docs" / "migration.md"
TRAIN = """
    work_dir append_dataset append_time cuda fp16 restart debug log_all_ranks dllog_file txtlog_file save_all no_env
    no_eval log_interval target_throughput target_perplexity amp_mode data dataset vocab n_layer n_head d_head d_embed
    d_model d_inner dropout dropatt pre_lnorm attn_type not_tied clamp_len adaptive div_val sample_softmax init emb_init
    init_range emb_init_range init_std proj_init_std optim lr mom scheduler max_step_scheduler warmup_step decay_rate
    lr_min clip weight_decay clip_nonemb patience eta_min max_step batch_size local_batch_size batch_chunk roll tgt_len
    ext_len mem_len seed multi_gpu gpu0_bsz same_length varlen eval_tgt_len eval_batch_size eval_max_steps
    eval_interval local_rank
"""
EVAL = """
    work_dir debug data manual dataset split type batch_size tgt_len ext_len mem_len seed clamp_len cuda model
    manual_config manual_vocab fp16 log_all_ranks dllog_file same_length no_env log_interval target_perplexity
    target_throughput save_data repeat max_size percentiles save_torchscript load_torchscript local_rank
"""
LATER = "config config_file swap_mem amp apex_amp_opt_level affinity profile"
SECTIONS = {"Training": TRAIN, "Evaluation": EVAL, "Flags of its scripts and later versions": LATER}


def rows(section: str) -> list[tuple[str, str, str]]:
    """(flag, cell of keys, remark) of every row of a section's table."""
    text = TABLE.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [(flag.strip("`-"), keys, remark) for flag, keys, remark in cells if flag.startswith("`--")]


def overrides(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ROWS = [pytest.param(section, *row, id=f"{section[:5]}-{row[0]}") for section in SECTIONS for row in rows(section)]


ENTRIES = {"Training": "train", "Evaluation": "evaluate", "Flags of its scripts and later versions": "later"}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_document_says_what_the_command_line_answers(section):
    answers = original_flags()[ENTRIES[section]]
    assert sorted(answers) == sorted(SECTIONS[section].split())
    for flag, cell, remark in rows(section):
        entry = answers[flag]
        if entry.here:
            assert cell.replace("`", "") == entry.here.replace("{}", entry.example)
        else:
            assert (cell, remark) == ("—", entry.reason)


@pytest.mark.parametrize("script", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("section", "flag"), [(section, flag) for section in SECTIONS for flag in SECTIONS[section].split()]
)
def test_every_flag_of_the_original_is_answered_in_both_spellings(section, flag, script):
    entry = original_flags()[ENTRIES[section]][flag]
    for arguments in ([f"--{flag}=7"], [f"--{flag}", "7"]):
        answer = answer_to_original_flags(arguments, script)
        assert answer and answer.startswith(f"--{flag} is a flag of the original; ")
        assert answer.endswith(f" ({DOCUMENT})") and len(answer) <= 300 and "\n" not in answer
        if ENTRIES[section] == script or flag not in original_flags()[script]:  # a flag of both means the script's own
            assert (entry.keys("7") or entry.reason)[:60] in answer


ANSWERS = {
    "--batch_size=256": "write train.batch_size=256 ",
    "--batch-size 256 --lr 0.01 --roll": "write train.batch_size=256 optimizer.lr=0.01 train.roll=true ",
    "--attn_type 2 --clamp_len -1": "write model.positions=absolute train.clamp_len=-1 ",
    "--d_embed -1 --optim jitlamb": "write model.d_embed=null optimizer=lamb ",
    "--config dgxa100_8gpu_fp16": "write model=base hardware=dgxa100 gpus=8 precision=fp16 cluster=local ",
    "--config 8dgx2_16gpu_fp16": "write model=base nodes=8 hardware=dgx2 gpus=16 precision=fp16 ",
    "--multi_gpu ddp": "several processes always train by DistributedDataParallel",
    "--manual hello": "write txl evaluate text=hello ",
    "--data": "write data.path=... ",
}


@pytest.mark.parametrize("command", ANSWERS)
def test_a_command_of_the_original_is_answered_with_its_keys(command):
    assert ANSWERS[command] in answer_to_original_flags(command.split(), "train")


def test_flags_of_evaluation_are_answered_with_its_keys():
    answer = answer_to_original_flags("--batch_size 16 --percentiles 90 95 --type pytorch".split(), "evaluate")
    assert "write batch_size=16 latency=true percentiles=[90,95] runtime=eager " in answer.replace("'", "")
    assert answer_to_original_flags(["train.batch_size=256", "--unknown"], "train") is None


@pytest.mark.parametrize("section", SECTIONS)
def test_every_flag_of_the_original_has_one_row(section):
    assert sorted(flag for flag, _, _ in rows(section)) == sorted(SECTIONS[section].split())


@pytest.mark.parametrize(("section", "flag", "cell", "remark"), ROWS)
def test_a_row_names_keys_that_compose_or_a_reason(section, flag, cell, remark, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    given = overrides(cell)
    if not given:
        assert cell == "—" and len(remark.split()) > 4, "neither a key nor a reason"
        return
    name, kind = ("evaluate", EvaluateConfig) if section == "Evaluation" else ("train", RunConfig)
    keys = {override.partition("=")[0] for override in given}
    assert keys <= dotted_keys(kind).keys() | {"experiment"}
    if name == "evaluate" and "checkpoint" not in keys:
        given.append("checkpoint=RUN")
    composed(*given, name=name, kind=kind)


def test_what_a_command_of_the_original_becomes_composes_too():
    commands = re.findall(r"`txl train ([^`]+)`", TABLE.read_text())
    commands = [command for command in commands if "..." not in command]
    assert len(commands) > 3
    for command in commands:
        composed(*command.split(), "dry_run=true")
