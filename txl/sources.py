"""Where a data set's text is: the files of a folder in the usual layouts, files that were named, one file to be cut,
or the standard library of the interpreter that runs.

In a folder, the first of these names that train has (`{}`: train, valid, test; test may be absent):

    {}.txt   wiki.{}.tokens   ptb.{}.txt         words; also for bytes and characters, but before them
    {}.txt.raw   wiki.{}.raw                     there: beside its .raw, {}.txt is numbers in the original's preparation
    NAME   NAME.txt                              with data.split_bytes: one file, such as enwik8, cut by size

A name may be a pattern (news.en-*-of-00100): files in order of their names, read one after the other.
"""

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import stat
import sysconfig
from fractions import Fraction
from pathlib import Path

import numpy as np

from txl.cache import made_once, read_json, write_json
from txl.choices import VocabKind
from txl.config import DataConfig
from txl.download import SOURCES
from txl.errors import ConfigError
from txl.text import Span, byte_blocks, character_start, line_start

SPLITS = ("train", "valid", "test")
LAYOUTS = ("{}.txt", "wiki.{}.tokens", "ptb.{}.txt")
RAW_LAYOUTS = ("{}.txt.raw", "wiki.{}.raw", *LAYOUTS)


Files = dict[str, list[Path]]


def find_files(data: DataConfig) -> Files:
    """{"train": ..., "valid": ..., "test": ...} (test may be missing), or {"file": ...} to be cut by `cut`.

    Raises ConfigError where a file is missing, empty, or not readable: the message names the ways out.
    """
    if data.max_bytes is not None:
        return standard_library(Path(data.cache), data.max_bytes)
    folder = Path(data.path or "").expanduser()
    if data.file is not None:
        files = {"file": [folder / Path(data.file).expanduser()]}
    else:
        named = {split: getattr(data, split) for split in SPLITS if getattr(data, split) is not None}
        files = {split: _matching(folder, name) for split, name in named.items()}
        if not {"train", "valid"} <= files.keys():
            files = _found_in(folder, data, files)
    for key, paths in files.items():
        for path in paths:
            _check(path, f"data.{key}", data)
    _check_shards(files, data)
    return files


def find_vocabulary(data: DataConfig) -> Files:
    """The files that data.vocab_file and data.merges_file name, in data.path or where one is. Raises ConfigError."""
    folder, files = Path(data.path or "").expanduser(), {}
    for key in ("vocab_file", "merges_file"):
        name = getattr(data, key)
        if name is not None:
            here = Path(name).expanduser()
            path = here if here.is_file() and not (folder / here).is_file() else folder / here
            _check(path, f"data.{key}", data)
            files[key] = [path]
    return files


def _matching(folder: Path, name: str) -> list[Path]:
    """The file of that name, or those of a pattern in order of their names; the pattern itself where there are none."""
    path = folder / Path(name).expanduser()
    if glob.has_magic(name) and not path.exists():
        found = sorted(glob.glob(str(Path(name).expanduser()), root_dir=folder))
        return [folder / each for each in found] or [path]
    return [path]


def _check_shards(files: Files, data: DataConfig) -> None:
    """All of data.shards must be there: training on a part of a corpus would go unnoticed."""
    train = files.get("train", [])
    if data.shards in (None, len(train)):
        return
    numbers = [re.search(r"-(\d+)-of-(\d+)$", path.name) for path in train]
    missing = ""
    if all(numbers):
        there, last = {int(number[1]) for number in numbers}, int(numbers[0][2])
        gaps = [f"{i:0{len(numbers[0][1])}d}" for i in range(1, last) if i not in there]
        missing = f" (not there: {', '.join(gaps[:3])}{', ...' if len(gaps) > 3 else ''})" if gaps else ""
    raise ConfigError(
        f"data.train={data.train} has {len(train)} files in {Path(data.path or '').absolute()}, data.shards="
        f"{data.shards} are expected{missing}; {_remedy(data)}, or take these: data.shards={len(train)}"
    )


def _found_in(folder: Path, data: DataConfig, named: Files) -> Files:
    """The files of a folder; `named` ones replace them."""
    if data.path is None:
        missing = next(split for split in SPLITS if split not in named)
        raise ConfigError(f"data.{missing} names no file; give data.train and data.valid, or data.file and data.split")
    if folder.is_file():
        return {"file": [folder]}
    prepared = data.vocab is VocabKind.word or (data.vocab is VocabKind.bpe and not data.split_bytes)
    layouts = LAYOUTS if prepared else RAW_LAYOUTS
    for layout in layouts:
        files = {split: [folder / layout.format(split)] for split in SPLITS} | named
        if files["train"][0].exists():
            absent = {"test"} if not files["test"][0].exists() and "test" not in named else set()
            return {split: paths for split, paths in files.items() if split not in absent}
    if data.split_bytes:
        for name in (data.name, f"{data.name}.txt"):
            if (folder / name).is_file():
                return {"file": [folder / name]}
        layouts = (data.name, *layouts)
    looked_for = ", ".join(layout.format("train") for layout in layouts)
    raise ConfigError(
        f"data.path={data.path}: no data in {folder.absolute()} (looked for {looked_for}); {_remedy(data)}, "
        "or train without a download: experiment=demo"
    )


def _remedy(data: DataConfig) -> str:
    folder = Path(data.path or data.name)
    if data.name in SOURCES:
        elsewhere = "" if folder == Path(os.environ.get("TXL_DATA", "data")) / data.name else f" --to {data.path}"
        return f"get it: python -m txl.download {data.name}{elsewhere}"
    if data.url:
        checksum = f" --sha256 {data.sha256}" if data.sha256 else ""
        return f"get it: python -m txl.download {data.url} --to {data.path}{checksum}"
    return "put train.txt, valid.txt and test.txt there"


def _check(path: Path, key: str, data: DataConfig) -> None:
    try:
        status = path.stat()
    except OSError as error:
        inside = f" in {path.parent.absolute()}" if not path.is_absolute() else ""
        correct = f"the name, or data.path={data.path}" if data.path else "the name"
        get = f"; or {_remedy(data)}" if data.name in SOURCES and error.errno == errno.ENOENT else ""
        raise ConfigError(f"{key}={path}: {error.strerror}{inside}; correct {correct}{get}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{key}={path} is not a file; give the name of a text file")
    if status.st_size == 0:
        raise ConfigError(f"{key}={path} is empty; give a file with text")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{key}={path} may not be read by this user; change its permissions")


def identity(files: Files) -> list[dict]:
    """By what we see that a file is another: path, size and time of change."""
    return [
        {"key": key, "path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        for key, paths in files.items()
        for path in paths
        for status in (path.stat(),)
    ]


# --------------------------------------------------------------------------- one file cut in splits


def cut(files: Files, data: DataConfig) -> dict[str, list[Span]]:
    """The stretches of text of each split.

    One file is cut in order train, valid, test: by data.split_bytes (what follows is left out), else by the fractions
    data.split, of its characters where data.vocab=char, else of its bytes. Two fractions: no test split. Words and
    byte pairs are cut at the next line's start; no character is cut in two.
    """
    if "file" not in files:
        return {key: [Span.whole(path, f"data.{key}") for path in paths] for key, paths in files.items()}
    whole = Span.whole(files["file"][0], "data.file")
    stops = _stops_of_sizes(whole, data) if data.split_bytes else _stops_of_fractions(whole, data)
    option, value = ("split_bytes", data.split_bytes) if data.split_bytes else ("split", data.split)
    spans = {}
    for split, start, stop in zip(SPLITS, [0, *stops[:-1]], stops, strict=False):
        if start >= stop:
            written = str(value).replace(" ", "")
            raise ConfigError(
                f"data.{option}={written} leaves no text for {split}: {whole} has {whole.stop} bytes; "
                "give more text, or a larger share"
            )
        spans[split] = [Span(whole.path, start, stop, "data.file")]
    return spans


def _stops_of_sizes(whole: Span, data: DataConfig) -> list[int]:
    stops = list(itertools.accumulate(data.split_bytes))
    if stops[-1] > whole.stop:
        written = str(data.split_bytes).replace(" ", "")
        raise ConfigError(
            f"data.split_bytes={written} needs {stops[-1]} bytes, {whole} has {whole.stop}; get the whole file, or "
            "cut it by shares: data.split_bytes=[] data.split=[.9,.05,.05]"
        )
    return [_aligned(whole, stop, data.vocab) for stop in stops]


def _stops_of_fractions(whole: Span, data: DataConfig) -> list[int]:
    shares = list(itertools.accumulate(Fraction(str(share)) for share in data.split))  # 0.9 is exactly 9/10
    if data.vocab is VocabKind.char:
        total = sum(int(_character_starts(block).sum()) for block in byte_blocks(whole))
        inner = [_offset_of_character(whole, int(total * share)) for share in shares[:-1]]
    else:
        inner = [_aligned(whole, int(whole.stop * share), data.vocab) for share in shares[:-1]]
    return [*inner, whole.stop]


def _aligned(whole: Span, position: int, kind: VocabKind) -> int:
    if kind is VocabKind.byte or position >= whole.stop:
        return position
    lines = kind in (VocabKind.word, VocabKind.bpe)
    return line_start(whole.path, position) if lines else character_start(whole.path, position)


def _character_starts(block: bytes) -> np.ndarray:
    """[bytes] whether a character begins there, in UTF-8."""
    return np.frombuffer(block, np.uint8) & 0xC0 != 0x80


def _offset_of_character(whole: Span, index: int) -> int:
    """The byte where character `index` begins."""
    offset = 0
    for block in byte_blocks(whole):
        starts = _character_starts(block)
        count = int(starts.sum())
        if index < count:
            return offset + int(np.flatnonzero(starts)[index])
        index, offset = index - count, offset + len(block)
    return offset


# --------------------------------------------------------------------------- the standard library

NOT_LIBRARY = {
    *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "turtledemo", "ensurepip"),
    *("lib2to3", "encodings"),  # copies of a grammar, tables of numbers
}


def standard_library(cache: Path, max_bytes: int) -> Files:
    """A text of the running interpreter's own library, made in the cache on first use; at most `max_bytes` in all.

    Every .py file in order of its path, without tests, tables and what was installed. Its path's sha256 deals a file
    to train (18 of 20), valid or test; where that is too much, every split is shortened by the same factor, at a
    line's end. So the text depends on nothing but the Python version and how it was packaged.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _library_files(root)
    listing = [(name, status.st_size, status.st_mtime_ns) for name, status in files.items()]
    key = hashlib.sha256(json.dumps([max_bytes, str(root), listing]).encode()).hexdigest()[:16]

    def make(draft: Path) -> None:
        texts = _deal(root, list(files), max_bytes)
        for split, text in texts.items():
            (draft / f"{split}.txt").write_bytes(text)
        write_json(draft / "sizes.json", {split: len(text) for split, text in texts.items()})

    def is_whole(folder: Path) -> bool:
        sizes = read_json(folder / "sizes.json") or {split: -1 for split in SPLITS}
        paths = [folder / f"{split}.txt" for split in SPLITS]
        return all(path.exists() and path.stat().st_size == sizes[path.stem] for path in paths)

    folder = made_once(cache / f"stdlib-text-{key}", make, is_whole)
    return {split: [folder / f"{split}.txt"] for split in SPLITS}


def _library_files(root: Path) -> dict[str, os.stat_result]:
    """Relative path -> status, in order of the paths."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_LIBRARY]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".py" and path.is_file():
                found[path.relative_to(root).as_posix()] = path.stat()
    return dict(sorted(found.items()))


def _deal(root: Path, names: list[str], max_bytes: int) -> dict[str, bytes]:
    texts = {split: bytearray() for split in SPLITS}
    for name in names:
        bucket = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20
        split = {18: "valid", 19: "test"}.get(bucket, "train")
        content = (root / name).read_bytes()
        texts[split] += content if content.endswith(b"\n") or not content else content + b"\n"
    total = sum(map(len, texts.values()))
    if total > max_bytes:
        for text in texts.values():
            end = len(text) * max_bytes // total
            del text[text.rfind(b"\n", 0, end) + 1 :]
    for split, text in texts.items():
        if not text:
            rule = f"data.max_bytes={max_bytes} leaves no text for {split}" if total else f"no .py files in {root}"
            raise ConfigError(f"data=stdlib: {rule}; use a larger data.max_bytes, or your own text: data=text")
    return {split: bytes(text) for split, text in texts.items()}
