"""A short form of `make fuzz`, and the inputs that once were answered with a traceback."""

import logging
import tempfile
from pathlib import Path

import pytest

from tools.fuzz.answers import problem_of, problem_of_message
from tools.fuzz.configurations import problem_of_command_line
from tools.fuzz.every_damage import EveryDamage
from tools.fuzz.files import FileFuzz
from txl.errors import ConfigError

SAMPLED_EVERY = 60  # of the combinations of reader, file and damage
FOUND_COMMAND_LINES = [330, 5729, 11287, 17355]  # data.split=${seed}, data.cache of 5,000 letters, train=${...} twice
# Seeds of files that failed: `txl status` of a run with a damaged config.yaml (two), an archive that cannot be read,
# a manifest's number of processes (two), a state's list of rollbacks.
FOUND = [90, 111, 302, 830, 2514, 2365]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_folder():
    """Messages name files: with a path of usual length they are short."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def failures(problem, seeds) -> list[str]:
    return [f"seed {seed}: {given}: {wrong}" for seed in seeds for given, wrong in [problem(seed)] if wrong]


def test_command_lines_of_every_kind_are_answered_in_one_short_line(elsewhere):
    assert failures(problem_of_command_line, [*range(60), *FOUND_COMMAND_LINES]) == []
    assert list(elsewhere.iterdir()) == []  # nothing is written before a run starts


@pytest.fixture(scope="module")
def every_damage(tmp_path_factory):
    return EveryDamage(tmp_path_factory.mktemp("damages"))


def test_a_sample_of_all_files_and_damages_is_one_line_and_loses_nothing(every_damage, elsewhere, caplog):
    assert failures(every_damage.problem, range(0, len(every_damage.all), SAMPLED_EVERY)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_file_with_every_damage_is_one_line_and_loses_nothing(every_damage, elsewhere, caplog):
    assert len(every_damage.all) > 1500
    assert failures(every_damage.problem, range(len(every_damage.all))) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_files_of_every_kind_are_answered_in_one_short_line(elsewhere, short_folder, caplog):
    assert failures(FileFuzz(short_folder).problem, [*FOUND, *range(200, 220)]) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_command_lines_are_answered_in_one_short_line(elsewhere):
    assert failures(problem_of_command_line, range(1000, 4000)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_damaged_files_are_answered_in_one_short_line(elsewhere, short_folder):
    assert failures(FileFuzz(short_folder).problem, range(1000, 1400)) == []


def test_what_counts_as_a_problem():
    def fail(error: BaseException):
        raise error

    assert problem_of(lambda: fail(ConfigError("seed=-1 must be 0 or more"))) is None
    assert problem_of(lambda: None) is None
    assert "traceback" in problem_of(lambda: fail(KeyError("x")))
    assert "several lines" in problem_of(lambda: fail(ConfigError("a\nb")))
    assert "301 characters" in problem_of_message("x" * 301)


def test_inputs_are_tried_without_a_word_and_the_log_is_as_before(capsys, caplog):
    def speak():
        print("printed")
        logging.getLogger("txl.data").warning("logged")
        logging.getLogger("txl").setLevel(logging.CRITICAL)

    assert problem_of(speak) is None
    assert (capsys.readouterr().out, caplog.messages) == ("", [])
    logging.getLogger("txl.data").warning("afterwards")
    assert caplog.messages == ["afterwards"]
