"""Values of environment variables and passwords do not reach what a run writes."""

import pytest
from omegaconf import OmegaConf

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.errors import ConfigError

SECRET = "tok-5ec4e7-0123456789"


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", SECRET)


@pytest.mark.parametrize(
    "override",
    [
        "name='${oc.env:MY_API_TOKEN}'",
        "data.cache='x/${oc.env:MY_API_TOKEN,none}'",
        "runs='${oc.decode:${oc.env:MY_API_TOKEN}}'",
        "data.name='${oc.env:${oc.env:USER,MY_API_TOKEN}}'",
    ],
)
def test_a_variable_that_is_on_no_list_is_refused_without_its_value(secret, monkeypatch, override):
    monkeypatch.delenv("USER", raising=False)
    with pytest.raises(ConfigError) as error:
        composed(override)
    assert SECRET not in str(error.value) and "TXL_VISIBLE_VARIABLES=MY_API_TOKEN" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_a_variable_can_be_allowed_and_known_ones_are(secret, monkeypatch):
    monkeypatch.setenv("TXL_VISIBLE_VARIABLES", "OTHER,MY_API_TOKEN")
    assert composed("name='a-${oc.env:MY_API_TOKEN}'").name == f"a-{SECRET}"
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert composed("data.cache='${oc.env:SCRATCH}/cache'").data.cache == "/scratch/me/cache"
    monkeypatch.delenv("SCRATCH")
    assert composed("data.cache='${oc.env:SCRATCH,/tmp}/cache'").data.cache == "/tmp/cache"
    with pytest.raises(ConfigError, match="the environment variable SCRATCH is not set"):
        composed("data.cache='${oc.env:SCRATCH}/cache'")


def test_a_start_with_a_secret_writes_it_nowhere(tmp_path, secret):
    options = [*write_corpus(tmp_path / "text"), *TINY_RUN, f"run_dir={tmp_path}/run"]
    done = run("train.py", *options, "name=${oc.env:MY_API_TOKEN}", cwd=tmp_path, expect=2)
    assert SECRET not in done.stdout + done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["data.path", "init_from", "data.cache"])
def test_an_address_with_a_password_is_refused_without_it(key):
    with pytest.raises(ConfigError, match=f"{key} holds an address with a password") as error:
        composed(f"{key}=https://me:{SECRET}@example.org/x")
    assert SECRET not in str(error.value)


def test_the_resolver_of_others_is_not_changed_in_its_meaning(monkeypatch):
    monkeypatch.setenv("TXL_DATA", "there")
    assert composed("data=ptb").data.path == "there/ptb"
    assert OmegaConf.create({"a": "${oc.env:TXL_DATA}"}).a == "there"
