"""Find the files of a data set.

They are the files of a folder in one of the usual layouts, the files that options name, one file that is cut into
splits, or the standard library of the running interpreter.

In a folder, the first of these layouts for which there is a train file is used (`{}` is train, valid or test; test may
be missing):

    {}.txt   wiki.{}.tokens   ptb.{}.txt     words, and other kinds of tokens that are read line by line
    {}.txt.raw   wiki.{}.raw                 bytes, characters, and data.split_bytes look for these first: in the
                                             original's preparation, {}.txt beside {}.txt.raw holds numbers
    NAME   NAME.txt                          with data.split_bytes: one file, such as enwik8, which is cut by size

A name may be a pattern (news.en-*-of-00100). Its files are read one after the other in the order of their names.
"""

import errno
import glob
import os
import re
import stat
from pathlib import Path

from txl.config.data import SPLITS, VOCAB_FILE_OPTIONS, CutAt, DataConfig
from txl.data.download_sources import SOURCES
from txl.data.standard_library import standard_library_files
from txl.errors import ConfigError

LAYOUTS = ("{}.txt", "wiki.{}.tokens", "ptb.{}.txt")
RAW_LAYOUTS = ("{}.txt.raw", "wiki.{}.raw", *LAYOUTS)

MOST_VOCABULARY_BYTES = 1 << 27  # it is read into memory, where it takes up to 30 times as much

Files = dict[str, list[Path]]  # {split: its files}, or {"file": [one file to be cut into splits]}
FileStamp = dict[str, str | int]


def find_text_files(data: DataConfig) -> Files:
    """{"train": ..., "valid": ..., "test": ...} (test may be missing), or {"file": ...}, which `split_text` cuts.

    Raises ConfigError, with the remedy, if a file is missing, empty, or not readable.
    """
    if data.max_bytes is not None:
        return standard_library_files(Path(data.cache), data.max_bytes)
    folder = Path(data.path or "").expanduser()
    if data.file is not None:
        files = {"file": [folder / Path(data.file).expanduser()]}
    else:
        named = {split: getattr(data, split) for split in SPLITS if getattr(data, split) is not None}
        files = {split: _matching_files(folder, name) for split, name in named.items()}
        if not {"train", "valid"} <= files.keys():
            files = _find_in_folder(folder, data, files)
    for key, paths in files.items():
        for path in paths:
            check_file(path, f"data.{key}", data)
    _check_shards(files, data)
    return files


def find_vocabulary_files(data: DataConfig) -> dict[str, Path]:
    """{option: path} of the files of the vocabulary that options name, in data.path or in the working directory.

    Raises ConfigError if a file is missing, empty, not readable, or too large.
    """
    folder, files = Path(data.path or "").expanduser(), {}
    for key in VOCAB_FILE_OPTIONS:
        name = getattr(data, key)
        if name is not None:
            here = Path(name).expanduser()
            path = here if here.is_file() and not (folder / here).is_file() else folder / here
            check_file(path, f"data.{key}", data)
            if path.stat().st_size > MOST_VOCABULARY_BYTES:
                raise ConfigError(
                    f"data.{key}={path} has {path.stat().st_size:,} bytes; a vocabulary has at most "
                    f"{MOST_VOCABULARY_BYTES:,}: give another file"
                )
            files[key] = path
    return files


def _matching_files(folder: Path, name: str) -> list[Path]:
    """The file of that name, or the files that match a pattern, by name; the pattern itself if none matches."""
    path = folder / Path(name).expanduser()
    if glob.has_magic(name) and not path.exists():
        found = sorted(glob.glob(str(Path(name).expanduser()), root_dir=folder))
        return [folder / each for each in found] or [path]
    return [path]


def _check_shards(files: Files, data: DataConfig) -> None:
    """Raise ConfigError unless there are data.shards files: nobody would notice training on a part of a corpus."""
    train = files.get("train", [])
    if data.shards in (None, len(train)):
        return
    matches = [re.search(r"-(\d+)-of-(\d+)$", path.name) for path in train]
    numbers = [match for match in matches if match]
    missing = ""
    if numbers and len(numbers) == len(train):
        there, last = {int(number[1]) for number in numbers}, int(numbers[0][2])
        gaps = [f"{i:0{len(numbers[0][1])}d}" for i in range(1, last) if i not in there]
        missing = f" (not there: {', '.join(gaps[:3])}{', ...' if len(gaps) > 3 else ''})" if gaps else ""
    raise ConfigError(
        f"data.train={data.train} has {len(train)} files in {Path(data.path or '').absolute()}, data.shards="
        f"{data.shards} are expected{missing}; {_how_to_get(data)}, or take these: data.shards={len(train)}"
    )


def _find_in_folder(folder: Path, data: DataConfig, named: Files) -> Files:
    """The files of a folder; `named` files replace those of the folder."""
    if data.path is None:
        missing = next(split for split in SPLITS if split not in named)
        raise ConfigError(f"data.{missing} names no file; give data.train and data.valid, or data.file and data.split")
    if folder.is_file():
        return {"file": [folder]}
    prepared = data.vocab.facts.cut_at is CutAt.line and not data.split_bytes
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
        f"data.path={data.path}: no data in {folder.absolute()} (looked for {looked_for}); {_how_to_get(data)}, "
        "or train without a download: experiment=demo"
    )


def _how_to_get(data: DataConfig) -> str:
    folder = Path(data.path or data.name)
    if data.name in SOURCES:
        elsewhere = "" if folder == Path(os.environ.get("TXL_DATA", "data")) / data.name else f" --to {data.path}"
        return f"get it: txl download {data.name}{elsewhere}"
    return "put train.txt, valid.txt and test.txt there"


def check_file(path: Path, key: str, data: DataConfig) -> None:
    """Raise ConfigError if a file is missing, empty, or not readable.

    Args:
        path: The file.
        key: The option that names it, for the message.
        data: Options of the data set; some data sets can be downloaded, which the message then says.
    """
    try:
        status = path.stat()
    except OSError as error:
        inside = f" in {path.parent.absolute()}" if not path.is_absolute() else ""
        correct = f"the name, or data.path={data.path}" if data.path else "the name"
        get = f"; or {_how_to_get(data)}" if data.name in SOURCES and error.errno == errno.ENOENT else ""
        raise ConfigError(f"{key}={path}: {error.strerror}{inside}; correct {correct}{get}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{key}={path} is not a file; give the name of a file")
    if status.st_size == 0:
        raise ConfigError(f"{key}={path} is empty; give another file")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{key}={path} may not be read by this user; change its permissions")


def file_stamps(files: Files) -> list[FileStamp]:
    """Path, size and modification time of each file: if one of them differs, the file is another one."""
    return [
        {"key": key, "path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        for key, paths in files.items()
        for path in paths
        for status in (path.stat(),)
    ]
