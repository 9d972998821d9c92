"""What README.md and docs/ say can be typed and followed: commands, options, links and paths exist."""

import argparse
import importlib.util
import re
import runpy
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.support.configurations import CONF, composed
from tests.support.documents import DOCUMENTS, PROJECT, code_in, commands, name_of, slug
from txl.cli.hydra_main import quote_typed_text
from txl.cli.main import COMMANDS as TXL_COMMANDS
from txl.config.did_you_mean import dotted_keys
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig

KINDS = {"train": RunConfig, "evaluate": EvaluateConfig, "benchmark": BenchmarkConfig}
FLAGS = {"-m", "--help", "--cfg", "job", "--resolve"}  # Hydra's
COMMANDS = commands()
TASKS = ("generate", "score")  # commands that are tasks of evaluate


class Parsed(BaseException):  # run_as_process ends the process at an Exception
    """The arguments of a command were accepted."""


class Refused(BaseException):
    """The parser of a command does not know its arguments, or misses some."""


def overrides_of(words: list[str]) -> list[str]:
    """The overrides of one point: of several values (-m), the first; without Hydra's own options."""
    kept = [quote_typed_text(word) for word in words if word not in FLAGS | {"..."} and not word.startswith("hydra")]
    parsed = OverridesParser.create().parse_overrides(kept)
    return [
        f"{one.key_or_group}={next(iter(one.sweep_string_iterator()))}" if one.is_sweep_override() else text
        for one, text in zip(parsed, kept, strict=True)
    ]


def check_parser(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m module arguments`: its parser accepts the arguments; nothing is done."""
    for name in ("parse_args", "parse_intermixed_args"):
        plain = getattr(argparse.ArgumentParser, name)

        def parse(*given, plain=plain, **named):
            try:
                plain(*given, **named)
            except SystemExit as refusal:
                raise Refused(f"{module} {' '.join(arguments)}") from refusal
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=False)


def check_make(words: list[str]) -> None:
    """`make target... VARIABLE=value`: targets are those of the Makefile."""
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_options(command: str, arguments: list[str]) -> None:
    """`txl command arguments`, a command whose options Hydra composes: they exist and have values that are allowed."""
    name = "evaluate" if command in TASKS else command
    needed = ["checkpoint=..."] if name == "evaluate" and "checkpoint=" not in " ".join(arguments) else []
    needed += [f"task={command}"] if command in TASKS else []
    if "--help" not in arguments:
        composed(*overrides_of(arguments), *needed, name=name, kind=KINDS[name])


@pytest.mark.parametrize("words, place", COMMANDS, ids=[f"{place} {words[-1]}" for words, place in COMMANDS])
def test_documented_commands_are_accepted(words, place, monkeypatch):
    program, *arguments = words
    if program in ("torchrun", "srun"):  # what they start
        program, *arguments = [word for word in arguments if not word.startswith("-")]
    if program.endswith("python") and arguments[0] == "-m":
        if not arguments[1].startswith("txl"):
            assert importlib.util.find_spec(arguments[1]), f"{place}: there is no {arguments[1]}"
            return
        check_parser(arguments[1], arguments[2:], monkeypatch)
    elif program == "make":
        check_make(arguments)
    elif program.endswith("python"):
        assert (PROJECT / arguments[0]).is_file(), f"{place}: there is no {arguments[0]}"
        if arguments[0].removesuffix(".py") in KINDS:
            check_options(arguments[0].removesuffix(".py"), arguments[1:])
    elif arguments[0] != "--version":
        assert arguments[0] in TXL_COMMANDS, f"{place}: there is no txl {arguments[0]}"
        if not arguments[1:]:  # a command's name alone is a mention
            return
        if arguments[0] in (*KINDS, *TASKS):
            check_options(arguments[0], arguments[1:])
        else:
            check_parser("txl", arguments, monkeypatch)


PLACEHOLDERS = {"key", "group", "mine"}
KEYS = PLACEHOLDERS | {key for kind in KINDS.values() for key in dotted_keys(kind)}
GROUPS = {folder.name: folder for folder in CONF.iterdir() if folder.is_dir()}


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name not in ("faults.md", "python.md")], ids=name_of
)
def test_options_in_the_documents_exist(document):
    unknown = []
    for code in code_in(document):
        for key, value in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)*)=([\w|-]*)", code.text):
            if key in GROUPS and value:
                known = {file.stem for file in GROUPS[key].glob("*.yaml")} | PLACEHOLDERS
                unknown += [f"{code.place}: {key}={one}" for one in value.split("|") if one not in known]
            elif key not in KEYS | GROUPS.keys() and not key.startswith("hydra"):
                unknown.append(f"{code.place}: {key}")
    assert unknown == []


def test_links_lead_somewhere():
    broken = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (document.parent / path).resolve() if path else document
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []
            if not file.exists() or (anchor and anchor not in map(slug, headings)):
                broken.append(f"{name_of(document)}: {target}")
    assert broken == []


def test_paths_in_the_documents_exist():
    missing = []
    for document in DOCUMENTS:
        for code in code_in(document):
            for path in re.findall(
                r"(?<![\w./-])((?:txl|tests|conf|docs|docker|hydra_plugins)/[\w./-]*\w/?)", code.text
            ):
                made_up = path.startswith("conf/site") or path.endswith("/mine.yaml") or re.search("FOLDER|NAME", path)
                if not made_up and not (PROJECT / path).exists():
                    missing.append(f"{code.place}: {path}")
    assert missing == []
