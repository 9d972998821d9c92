"""Every file of a run folder, an export, an import, a cache and an archive, with every kind of damage, one at a time.

What reads it must succeed or say one line. The start of a run must go on from the newest checkpoint that is whole, a
cache must hold the right ids again, and no file that is whole may be lost.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.configurations import composed
from tests.support.damage import DAMAGES
from tools.fuzz.answers import problem_of
from tools.fuzz.files import FileFuzz
from txl.checkpoint.find import step_of
from txl.config.tracking import SinkName, WandbMode
from txl.data.corpus import Corpus, open_corpus
from txl.evaluate.load_model import read_model_description
from txl.launch.prepare import prepare
from txl.plan.batch_split import with_global_batch
from txl.tracking.finished_run import track_finished_run

MOST_BYTES = 1 << 30  # a larger file is one of the damages
NEWEST, BEFORE = 6, 3  # steps of the checkpoints in the run folder
# What a start writes anew, or appends to.
REWRITTEN = {".lock", "config.yaml", "plan.json", "start.json", "train.log", "environment.json"}


def swap(path: Path) -> None:
    """The content of another file of the same folder."""
    others = [other for other in sorted(path.parent.iterdir()) if other != path and other.is_file()]
    path.write_bytes(others[0].read_bytes() if others else b"the content of another file")


def other_version(path: Path) -> None:
    """A document of a version to come; of other files the first bytes, which say what they are, are changed."""
    content = path.read_bytes()
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        path.write_text(json.dumps({"version": 99, **{f"{key}2": value for key, value in document.items()}}))
    else:
        path.write_bytes(b"V99\n" + content[4:])


def make_vast(path: Path) -> None:
    """Four gigabytes, which take no room on the disk."""
    os.truncate(path, 4 * MOST_BYTES)


MADE_HERE: dict[str, Callable[[Path], object]] = {"swapped": swap, "other_version": other_version, "vast": make_vast}
KINDS = DAMAGES | MADE_HERE


class EveryDamage:
    """All combinations of reader, file and damage, by number.

    Args:
        folder: An empty folder for the files.
    """

    def __init__(self, folder: Path):
        self.fuzz = FileFuzz(folder)
        self.readers = self.fuzz.readers | {"start": self._start, "cache": self._encode_again, "track": _track}
        self.readers.pop("resume")  # a start with a training after it
        self.all = [
            (target, file.relative_to(source).as_posix(), kind)
            for target in self.readers
            for source in [self._source(target)]
            for file in sorted(source.rglob("*"))
            if (file.is_file() or file.is_symlink()) and "code" not in file.relative_to(source).parts
            for kind in KINDS
        ]
        data = composed(*self.fuzz.options).data
        self.cache = self._content(open_corpus(data))
        self.file = ""

    def _source(self, target: str) -> Path:
        return self.fuzz.whole / (self.fuzz.sources | {"start": "run", "track": "run"}).get(target, target)

    def problem(self, number: int) -> tuple[str, str | None]:
        """What was damaged, and what is wrong with the answer."""
        target, self.file, kind = self.all[number]
        copy = self._copy(target)
        path = copy / self.file
        if path.is_symlink():  # a copy of the run on a disk without links
            content = Path(path.readlink()).name + "\n"
            path.unlink()
            path.write_text(content)
        KINDS[kind](path)
        whole = files_by_content(copy, self.file)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            wrong = problem_of(lambda: self.readers[target](copy))
        lost = whole - files_by_content(copy) if target != "cache" else None
        if lost and wrong is None:
            wrong = f"lost: {sorted(name for name, _ in lost)}"
        return f"{target}: {self.file} {kind}", wrong

    def _copy(self, target: str) -> Path:
        source = self._source(target)
        shutil.rmtree(self.fuzz.damaged, ignore_errors=True)
        copy = self.fuzz.damaged / source.name
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("code"))
        return copy

    def _start(self, copy: Path) -> None:
        """What happens before ranks start; they would go on from the newest checkpoint that is whole."""
        options = [*self.fuzz.options, f"run_dir={copy}", "resume=auto", "train.max_step=7", "scheduler.max_step=6"]
        with prepare(with_global_batch(composed(*options))) as prepared:
            found = step_of(Path(prepared.checkpoint)) if prepared.checkpoint else 0
        expected = BEFORE if self.file.startswith(f"checkpoints/step_{NEWEST}/") else NEWEST
        assert found == expected, f"goes on from step {found}, not {expected}"

    def _encode_again(self, copy: Path) -> None:
        corpus = open_corpus(composed(*self.fuzz.options, f"data.cache={copy}").data)
        assert self._content(corpus) == self.cache, "other ids"

    @staticmethod
    def _content(corpus: Corpus) -> list[object]:
        return [
            corpus.fingerprint,
            corpus.vocab.fingerprint,
            *(corpus.tokens(name).tobytes() for name in corpus.splits),
        ]


def _track(copy: Path) -> None:
    """The configuration is also that of weights alone (config_file=)."""
    read_model_description(str(copy / "config.yaml"))
    track_finished_run(copy, SinkName.tensorboard, WandbMode.offline)


def files_by_content(folder: Path, but: str = "") -> Counter[tuple[str, str]]:
    """How often each file name stands below a folder with which content, without those that a start writes anew."""
    found: Counter[tuple[str, str]] = Counter()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        skipped = name == but or name in REWRITTEN or name.startswith(("logs/", "code/"))
        if not skipped and path.is_file() and path.stat().st_size < MOST_BYTES:
            found[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] += 1
    return found
