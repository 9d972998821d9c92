"""A text that every machine has: the source files of Python's standard library."""

import hashlib
import os
import sysconfig
from pathlib import Path

from txl.data.build_once import made_once
from txl.data.splits import SPLITS, Files
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_json, write_json

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
    key = sha256_of_json([max_bytes, str(root), listing])[:16]

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
