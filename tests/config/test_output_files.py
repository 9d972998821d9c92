"""Where a result cannot be written, one line says so before any work."""

import re

import pytest

from tests.support.configurations import composed
from tests.support.entry_points import PROJECT
from txl.checkpoint.__main__ import main as exchange
from txl.config.output_files import check_output_files
from txl.config.schema import BenchmarkConfig, EvaluateConfig
from txl.errors import ConfigError
from txl.launch.start import Launcher

EVALUATE = ["checkpoint=none", "hardware=cpu"]
GENERATE = [*EVALUATE, "task=generate", "prompt=a"]
KEYS = [("evaluate", EVALUATE, key) for key in ("json", "npz", "log", "dllogger")]
KEYS += [("generate", GENERATE, key) for key in ("json", "log")]
KEYS += [("torchscript", [*EVALUATE, "runtime=torchscript"], "program")]
KEYS += [(suite, [f"suite={suite}", "hardware=cpu"], "benchmark.json") for suite in ("inference", "train", "encoding")]
KEYS += [("profile", ["suite=train", "hardware=cpu"], "benchmark.profile")]

PLACES = {"": "is a folder; name a file in it", "file/x/r": "a file, no folder|there is no folder"}
PLACES |= {"/proc/r": "cannot be written"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("what", "overrides", "key"), KEYS, ids=[f"{what}-{key}" for what, _, key in KEYS])
def test_a_file_that_cannot_be_written_is_found_before_any_work(what, overrides, key, place, tmp_path):
    (tmp_path / "file").write_text("")
    name, kind = ("benchmark", BenchmarkConfig) if key.startswith("benchmark.") else ("evaluate", EvaluateConfig)
    config = composed(*overrides, f"{key}={tmp_path / place}", name=name, kind=kind)
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}=.*({PLACES[place]})") as error:
        Launcher().start(config)
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_is_named_unless_the_option_makes_it(tmp_path):
    with pytest.raises(ConfigError, match="json=.*there is no folder .*missing; make it"):
        check_output_files(composed(*EVALUATE, f"json={tmp_path}/missing/r", name="evaluate", kind=EvaluateConfig))
    check_output_files(composed(f"benchmark.json={tmp_path}/missing/r", name="benchmark", kind=BenchmarkConfig))
    assert list(tmp_path.iterdir()) == []


def test_two_results_do_not_share_a_file_and_a_device_may_be_written(tmp_path):
    with pytest.raises(ConfigError, match="log=.* is the file of json= too"):
        check_output_files(
            composed(*EVALUATE, f"json={tmp_path}/r", f"log={tmp_path}/r", name="evaluate", kind=EvaluateConfig)
        )
    check_output_files(composed(*EVALUATE, "json=/dev/null", "log=/dev/null", name="evaluate", kind=EvaluateConfig))


def test_every_option_that_is_written_says_so_in_its_type():
    options = [line for path in (PROJECT / "txl" / "config").glob("*.py") for line in path.read_text().splitlines()]
    written = [line for line in options if re.search(r": str \| None = .*#.*\b(write|append|trace)\b", line)]
    assert len(written) >= 6 and [line for line in written if "output_file(" not in line] == []


@pytest.mark.parametrize("command", ["import", "export", "export --format safetensors"])
@pytest.mark.parametrize("place", ["file/x", "/proc/x"])
def test_models_are_not_read_before_it_is_known_that_they_can_be_written(command, place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    name, *options = command.split()
    assert exchange([name, str(tmp_path / "no-model"), str(tmp_path / place), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: TARGET={tmp_path / place}") and said.count("\n") == 1
