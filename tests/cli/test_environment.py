"""What a user's environment decides: the encoding of the console, the home folder, wandb's own switch."""

import io
import sys

import pytest

from tests.support.configurations import composed
from txl.cli.main import main
from txl.config.schema import EvaluateConfig
from txl.config.tracking import WandbMode
from txl.evaluate.typed_text import read_text_argument
from txl.system.console import printable


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_that_lacks_a_character_shows_its_escape(encoding, monkeypatch):
    console = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(console, encoding=encoding))
    assert main(["--version"]) == 0
    print("你好 ±", flush=True)
    assert b"\\u4f60\\u597d" in console.getvalue()


def test_bytes_of_standard_input_that_are_no_text_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat \xe4\xbd"), "utf-8", "strict"))
    assert read_text_argument("text", "-").encode("utf-8", "surrogateescape") == b"the cat \xe4\xbd"


def test_spaces_and_joiners_of_all_scripts_are_printed_and_overrides_of_direction_are_not():
    text = "\u3000\u4f60 \u0645\u06cc\u200c\u0631 10\u00a0km \U0001f469\u200d\U0001f467 \u00ad"
    assert printable(text) == text
    assert printable("a\u202eb\x9bc\u2028") == "a\ufffdb\ufffdc\ufffd"


def test_a_tilde_is_the_home_folder_in_every_path_and_stays_in_a_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = composed("runs='~/runs'", "run_dir='~/run'", "data.cache='~/cache'", "init_from='~/a'", "experiment=demo")
    assert (config.runs, config.run_dir, config.init_from) == ("/home/me/runs", "/home/me/run", "/home/me/a")
    assert config.data.cache == "/home/me/cache"
    asked = composed(
        "checkpoint='~/r'", "text='~/r is a path'", "json='~/x.json'", name="evaluate", kind=EvaluateConfig
    )
    assert (asked.checkpoint, asked.json, asked.text) == ("/home/me/r", "/home/me/x.json", "~/r is a path")


def test_wandbs_own_switch_decides_its_mode_unless_the_command_line_does(monkeypatch):
    assert composed("tracking=wandb", "seed=1").tracking.wandb.mode is WandbMode.online
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert composed("tracking=wandb", "seed=2").tracking.wandb.mode is WandbMode.offline
    assert composed("tracking=wandb", "tracking.wandb.mode=online").tracking.wandb.mode is WandbMode.online
    assert composed("seed=3").tracking.wandb.mode is WandbMode.none
