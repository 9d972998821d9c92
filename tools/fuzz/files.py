"""Files of runs, imports, caches and archives with every kind of damage: read by what reads them."""

import contextlib
import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.configurations import composed
from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from tools.fuzz.answers import problem_of, problem_of_message, unheard
from txl.checkpoint.exchange import export_model, import_model
from txl.checkpoint.find import MANIFEST
from txl.data.corpus import open_corpus
from txl.data.download_sources import DownloadError
from txl.data.unpack_archive import unpack
from txl.errors import ConfigError
from txl.evaluate.load_model import load_trained_model
from txl.files import PROJECT, sha256_of_file
from txl.launch.choose_checkpoint import find_checkpoint
from txl.launch.status import main as status
from txl.report.__main__ import main as report

HUGGING_FACE = PROJECT / "tests" / "hugging_face" / "div_val_4.json"
DOCUMENTS = [b"null", b"[]", b"{}", b"1", b'"text"', b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"\xff\xfe\x00", b"{"]
VALUES: list[Any] = [None, -1, 0, 1 << 70, 1e308, float("nan"), "x", "x" * 10_000, [], {}, [[]], True, "\x1b[2J"]


class FileFuzz:
    """Whole files, made once; every seed damages a copy of some and reads it.

    Args:
        folder: An empty folder for the files.
    """

    def __init__(self, folder: Path):
        self.whole, self.damaged = folder / "whole", folder / "damaged"
        with unheard():
            self.options = self._make_files(self.whole)

        # What is damaged, and what reads it.
        self.readers: dict[str, Callable[[Path], object]] = {
            "run": self._load_run,
            "resume": self._resume,
            "report": self._report,
            "status": self._status,
            "safetensors": lambda copy: load_trained_model(str(copy), torch.device("cpu")),
            "reference": lambda copy: import_model(copy / "model.pt", self.damaged / "imported"),
            "hugging_face": lambda copy: import_model(copy, self.damaged / "imported"),
            "cache": self._open_cache,
            "archive": self._unpack,
        }
        self.sources = {"resume": "run", "report": "run", "status": "run"}

    def _make_files(self, folder: Path) -> list[str]:
        data = [*write_corpus(folder / "text", train_lines=60), f"data.cache={folder}/cache", "data.vocab=word"]
        options = [*data, *TINY_RUN, "train.max_step=6", "checkpoint.interval=3"]
        train_here(*options, f"run_dir={folder}/run")
        export_model(folder / "run", folder / "safetensors", "safetensors")
        (folder / "reference").mkdir()
        export_model(folder / "run", folder / "reference" / "model.pt", "reference")
        (folder / "hugging_face").mkdir()
        case = json.loads(HUGGING_FACE.read_text())
        (folder / "hugging_face" / "config.json").write_text(json.dumps(case["config"]))
        torch.save(load_file(HUGGING_FACE.with_suffix(".safetensors")), folder / "hugging_face" / "pytorch_model.bin")
        (folder / "archive").mkdir()
        with zipfile.ZipFile(folder / "archive" / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(folder / "text" / "train.txt", "a/train.txt")
            packed.write(folder / "text" / "valid.txt", "a/valid.txt")
        with tarfile.open(folder / "archive" / "b.tar.gz", "w:gz") as tar:
            tar.add(folder / "text" / "train.txt", "a/train.txt")
        return options

    # ------------------------------------------------------------------ one seed

    def problem(self, seed: int) -> tuple[str, str | None]:
        """What was damaged for a seed, and what is wrong with the answer."""
        rng = random.Random(seed)
        target = rng.choice(list(self.readers))
        source = self.whole / self.sources.get(target, target)
        shutil.rmtree(self.damaged, ignore_errors=True)
        copy = self.damaged / source.name
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("code"))
        done = [damage(copy, rng) for _ in range(rng.choice([1, 1, 1, 2]))]
        if rng.random() < 0.5:
            reseal(copy)
        wrong = problem_of(lambda: self.readers[target](copy))
        return f"{target}: {'; '.join(done)}", wrong

    def _load_run(self, copy: Path) -> None:
        load_trained_model(str(copy), torch.device("cpu"))

    def _resume(self, copy: Path) -> None:
        """As `resume=auto` does before ranks start, and half of the time the whole continuation."""
        options = [*self.options, f"run_dir={copy}", "resume=auto", "train.max_step=7", "scheduler.max_step=6"]
        config = composed(*options)
        found, _ = find_checkpoint(config, copy)
        if found:
            train_here(*options)

    def _report(self, copy: Path) -> None:
        _run_command(report, copy)

    def _status(self, copy: Path) -> None:
        _run_command(status, copy)

    def _open_cache(self, copy: Path) -> None:
        data = composed(*self.options, f"data.cache={copy}").data
        corpus = open_corpus(data)
        for split in corpus.splits:
            assert int(corpus.tokens(split).max()) < len(corpus.vocab), "an id is beyond the vocabulary"

    def _unpack(self, copy: Path) -> None:
        for archive in sorted(copy.iterdir()):
            try:
                if archive.is_file():
                    unpack(archive, self.damaged, {}, archive.name)
            except DownloadError as error:
                raise ConfigError(str(error)) from None


def _run_command(main: Callable[[list[str]], int], folder: Path) -> None:
    """Runs a command on a folder. Raises ConfigError with its message, if that is not as it must be."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main([str(folder)])
    for line in errors.getvalue().splitlines() if code else []:
        problem = problem_of_message(line)
        assert problem is None, problem


# --------------------------------------------------------------------------- damage


def damage(folder: Path, rng: random.Random) -> str:
    """Damages a random file below a folder; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing"
    file = rng.choice(files)
    how = rng.choice(DAMAGE)
    how(file, rng, files)
    return f"{how.__name__.strip('_')} {file.relative_to(folder)}"


def _truncate(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.write_bytes(file.read_bytes()[: rng.randint(0, max(0, file.stat().st_size - 1))])


def _flip(file: Path, rng: random.Random, files: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 8]) if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _zero(file: Path, rng: random.Random, files: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    start = rng.randint(0, len(content))
    end = min(len(content), start + rng.choice([1, 64, 4096]))
    content[start:end] = bytes(end - start)
    file.write_bytes(content)


def _empty(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.write_bytes(b"")


def _swap(file: Path, rng: random.Random, files: list[Path]) -> None:
    other = rng.choice(files)
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def _make_folder(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.unlink()
    file.mkdir()


def _make_dangling_link(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.unlink()
    file.symlink_to(rng.choice(["nowhere", file.name, "/dev/null", "/proc/self/mem"]))


def _make_fifo(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.unlink()
    os.mkfifo(file)


def _remove(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.unlink()


def _put_document(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.write_bytes(rng.choice(DOCUMENTS))


def _grow(file: Path, rng: random.Random, files: list[Path]) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.choice([1, 100, 5000])))


def _change_value(file: Path, rng: random.Random, files: list[Path]) -> None:
    """One value of a JSON document is replaced, or removed."""
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return _flip(file, rng, files)
    place = document
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            if rng.random() < 0.2:
                del place[key]
            else:
                place[key] = rng.choice(VALUES)
            break
        place = place[key]
    file.write_text(json.dumps(document))


DAMAGE = [_truncate, _flip, _zero, _empty, _swap, _make_folder, _make_dangling_link, _make_fifo, _remove]
DAMAGE += [_put_document, _grow, _change_value, _change_value, _change_value]


def reseal(folder: Path) -> None:
    """Writes sizes and checksums that fit into the manifests: a file that is wrong, but not torn."""
    for path in filter(Path.is_file, folder.rglob(MANIFEST)):  # a pipe would wait for a writer
        try:
            manifest = json.loads(path.read_bytes())
            for name, entry in manifest["files"].items():
                file = path.parent / name
                entry |= {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)} if file.is_file() else {}
            path.write_text(json.dumps(manifest))
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
            continue
