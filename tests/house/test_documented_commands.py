"""Every command in a block of the documents runs, on tiny settings, or tests/support/typed_commands.py says why not."""

import contextlib
import io
import json
import os
import random
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, trainers

from tests.support.documents import DOCUMENTS, block_commands, name_of
from tests.support.made_data import sentences, write_bpe, write_splits
from tests.support.made_runs import write_sweep
from tests.support.typed_commands import NOT_HERE, RUN, TINY_MODEL, TINY_TRAINING, as_run_here, why_not_here
from txl.cli.main import main

BLOCKS = {name_of(document): block_commands(document) for document in DOCUMENTS}
SHORT_TEXTS = ("hyps.txt", "lines.txt", "answers.txt", "question.txt", "prompts.txt")
TEXTS = ("a.txt", "b.txt", "c.txt", "my.txt", *SHORT_TEXTS)
TINY = [*TINY_TRAINING, *TINY_MODEL, "data.vocab_size=null"]


def test_every_reason_not_to_run_a_command_is_needed():
    commands = [words for page in BLOCKS.values() for words, _ in page]
    refused = {why_not_here(words) for words in commands} - {None}
    assert refused == set(NOT_HERE.values())
    assert sum(why_not_here(words) is None for words in commands) > 80


def type_command(arguments: list[str]) -> str:
    """What `txl ARGUMENTS` prints, in this process; the signal handlers are as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not code, f"txl {' '.join(arguments)}\nexit code {code}\n{out.getvalue()[-2000:]}"
    return out.getvalue()


def write_texts(folder: Path) -> None:
    """The data and texts that the documents name."""
    rng = random.Random(0)
    for name in ("wt103", "wikitext-mini"):
        write_splits(folder / "data" / name, "{}.txt")
    with open(folder / "data" / "wt103" / "train.txt", "a") as text:
        text.write(" <unk> The history of the city . recognize speech . def import\n")
    for name in TEXTS:
        (folder / name).write_text("\n".join(sentences(20 if name in SHORT_TEXTS else 1500, rng)) + "\n")
    (folder / "data" / "tinyshakespeare").mkdir()
    (folder / "data" / "tinyshakespeare" / "input.txt").write_text((folder / "my.txt").read_text())
    write_bpe(folder / "data" / "gpt2", sentences(200, rng))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.train_from_iterator(
        sentences(200, rng), trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in "abc":
        np.save(folder / f"{name}.npy", np.array(rng.choices(range(512), k=5000), dtype=np.uint16))
    np.array(rng.choices(range(512), k=20000), dtype=np.uint16).tofile(folder / "a.bin")


def write_models(folder: Path) -> None:
    """The run of the documents, a sweep, and models of other implementations."""
    type_command(["train", "model=base", f"run_dir={RUN}", "name=wt103-base", *TINY, "data.cutoffs=[]"])
    type_command(["export", RUN, "checkpoint_best.pt"])
    shutil.copytree(RUN, "runs/wt103-large/HASH-s1111")
    write_sweep(folder / "made")
    (folder / "made" / "sweep").rename(folder / "runs" / "wikitext-mini")
    case = Path(__file__).parents[1] / "hugging_face" / "div_val_1.json"
    (folder / "HUGGING_FACE_FOLDER").mkdir()
    values = json.loads(case.read_text())["config"]
    (folder / "HUGGING_FACE_FOLDER" / "config.json").write_text(json.dumps(values))
    torch.save(load_file(case.with_suffix(".safetensors")), folder / "HUGGING_FACE_FOLDER" / "pytorch_model.bin")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working directory with everything that the documents name: data, texts, a run, sweeps, others' models."""
    folder, here = tmp_path_factory.mktemp("documents"), os.getcwd()
    os.chdir(folder)
    try:
        write_texts(folder)
        write_models(folder)
    finally:
        os.chdir(here)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, commands in BLOCKS.items() if commands])
@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_a_page_run_one_after_the_other(page, world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("WANDB_MODE", "offline")
    failed = []
    for number, (words, place) in enumerate(BLOCKS[page]):
        if why_not_here(words) is None:
            try:
                type_command(as_run_here(words, number))
            except AssertionError as error:
                failed.append(f"{place}: {shlex.join(words)}\n{error}")
    assert not failed, "\n\n".join(failed)
