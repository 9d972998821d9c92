"""The documentation builds as a site, and its first page can be followed."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.support.browser import missing_programs
from tests.support.documents import PROJECT, commands
from tests.support.entry_points import environment
from tests.support.made_runs import write_study, write_sweep

SHORT = "train.max_step=4 valid.interval=2 scheduler.warmup_step=1 train.batch_size=4 data.max_bytes=100000".split()


def test_the_site_builds_without_a_warning(tmp_path):
    shutil.copy(PROJECT / "mkdocs.yml", tmp_path)
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    assert (tmp_path / "build" / "site" / "getting-started.html").is_file()


def test_every_page_is_in_the_navigation():
    named = (PROJECT / "mkdocs.yml").read_text().split("nav:")[-1]
    pages = [page.relative_to(PROJECT / "docs").as_posix() for page in (PROJECT / "docs").rglob("*.md")]
    assert [page for page in pages if f"- {page}\n" not in named] == []


def test_make_does_every_listed_target_although_a_folder_has_its_name():
    text = (PROJECT / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split()
    assert set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)) - set(phony) == set()


@pytest.mark.slow
def test_getting_started_can_be_typed_from_top_to_bottom(tmp_path):
    """Every command in its order, with trainings of a few steps."""
    typed = [words[1:] for words, place in commands() if "getting-started.md" in place and words[0] == "txl"]
    followed = [words for words in typed if not {"wt103", "data=wt103", "data.file=my.txt"} & set(words)]
    for command, *arguments in followed:
        typed_here = [sys.executable, "-m", "txl", command, *arguments, *(SHORT if command == "train" else ())]
        done = subprocess.run(
            typed_here, cwd=tmp_path, env=environment(PYTHONPATH=str(PROJECT)), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{typed_here}\n{done.stdout}\n{done.stderr}"
    assert {words[0] for words in followed} == {"--version", "train", "generate", "evaluate", "report"}
    assert len(list((tmp_path / "runs" / "rates").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_programs()), reason="needs chromium and chromium-driver")
def test_the_pictures_of_the_pages_can_be_taken_again(tmp_path):
    write_sweep(tmp_path)
    study = write_study(tmp_path / "search")
    command = [sys.executable, "-m", "tools.pictures", "--runs", str(tmp_path / "sweep"), "--study", str(study)]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=PROJECT, check=True, timeout=120)
    for name in ("report.png", "band.png", "study.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 20_000
