"""Command lines are checked before Hydra reads them."""

import pytest

from txl.cli.arguments import config_dir_of, split_arguments
from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError


def split(*arguments: str) -> tuple[list[str], list[str]]:
    return split_arguments(list(arguments), "train", RunConfig)


def test_hydras_flags_may_stand_in_any_place():
    assert split("seed=1,2", "-m", "nodes=1") == (["seed=1,2", "nodes=1"], ["-m"])
    assert split("--cfg", "job", "seed=1", "--resolve") == (["seed=1"], ["--cfg", "job", "--resolve"])
    assert split("--info", "seed=1", "--config-dir=mine") == (["seed=1"], ["--info", "--config-dir=mine"])
    assert config_dir_of(["-m", "--config-dir", "mine"]) == config_dir_of(["--config-dir=mine"]) == "mine"
    assert config_dir_of(["-m"]) is None


def test_overrides_of_hydra_pass_as_they_are():
    overrides = ["~seed", "+data.x=1", "++nodes=2", "hydra/launcher=slurm_array", "data.split=[.9, .1]", "model=[a,b]"]
    assert split(*overrides) == (overrides, [])


REFUSED = {
    ("train.max_step", "100"): "train.max_step lacks an equals sign; write train.max_step=100",
    ("train.max_step=", "100"): "train.max_step= 100 has a space after `=`; write train.max_step=100",
    ("train.max_step", "=100"): "train.max_step lacks an equals sign; write train.max_step=100",
    ("train.max_step", "seed=1"): "train.max_step lacks an equals sign; write train.max_step=...",
    ("experiment", "demo"): "experiment lacks an equals sign; write experiment=demo",
    ("demo",): "demo is not key=value; write experiment=demo",
    ("train.max_stp",): "train.max_stp is not key=value; did you mean train.max_step?",
    ("",): "an argument is empty; write key=value",
    ("=3",): "`=3` has no key; write key=value without spaces",
    ("--max_stepp", "3"): "--max_stepp is not a flag; options are written key=value; did you mean train.max_step",
    ("-x",): "-x is not a flag; options are written key=value",
    ("--cfg",): "--cfg needs a value",
    ("--cfg", "everything"): "--cfg everything must be one of job, hydra, all",
    ("cluster=[2]",): "a choice (cluster) must name one of the files in its folder of conf/, no other value",
    ("train.micro_batch_cap={cpu: 1}",): "train.micro_batch_cap can be set in YAML files only; use train.micro_batch_s",
    ("seed=" + "9" * 5000,): "has a number of more than 1000 digits; write a smaller one",
    ("x" * 5000 + "=1",): "is not an option",
    ("model=" + "x" * 5000,): "does not exist",
    ("x" * 5000,): "is not key=value",
    ("--" + "x" * 5000,): "is not a flag",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(arguments)[:30])
def test_a_mistake_on_the_command_line_is_one_short_line_with_its_remedy(arguments):
    with pytest.raises(ConfigError) as error:
        split(*arguments)
    message = str(error.value)
    assert REFUSED[arguments] in message and len(message) <= 300 and "\n" not in message


def test_a_folder_or_file_without_a_key_gets_the_key_that_it_may_belong_to(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a")
    for arguments, script, kind, remedy in (
        ([str(tmp_path)], "evaluate", EvaluateConfig, "write checkpoint="),
        ([str(tmp_path)], "train", RunConfig, "write run_dir="),
        ([str(text)], "train", RunConfig, "write data=text data.file="),
    ):
        with pytest.raises(ConfigError, match=remedy):
            split_arguments(arguments, script, kind)
