"""A text that every machine has: the source files of the interpreter's own standard library (data=stdlib)."""

import hashlib
import os
import sysconfig
from pathlib import Path

from txl.config.data import SPLITS
from txl.data.build_once import build_once
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_file, sha256_of_json, write_json

LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "turtledemo", "ensurepip"),
    *("lib2to3", "encodings"),  # copies of a grammar, tables of numbers
}


def standard_library_files(cache: Path, max_bytes: int) -> dict[str, list[Path]]:
    """The paths of train, valid and test text, which are written to `cache` on first use.

    The text is every .py file in the order of the paths, without tests, tables and installed packages. The sha256 of a
    file's path decides its split: 18 of 20 go to train, one to valid, one to test. If there are more than `max_bytes`
    bytes, every split is shortened by the same factor, at the end of a line. The text therefore depends only on the
    Python version and on how it was packaged. Raises ConfigError if a split would be empty.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = list_library_files(root)

    def build(draft: Path) -> None:
        texts = split_library_files(root, list(files), max_bytes)
        for split, text in texts.items():
            (draft / f"{split}.txt").write_bytes(text)
        write_json(draft / "sha256.json", {split: hashlib.sha256(text).hexdigest() for split, text in texts.items()})

    folder = _text_folder(cache, max_bytes, root, files)
    build_once(folder, build, _find_damage, lambda folder: _find_damage(folder) is None)
    return {split: [folder / f"{split}.txt"] for split in SPLITS}


def has_library_text(cache: Path, max_bytes: int) -> bool:
    """Whether `standard_library_files` finds its text in `cache`, and would write nothing."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return _find_damage(_text_folder(cache, max_bytes, root, list_library_files(root))) is None


def _text_folder(cache: Path, max_bytes: int, root: Path, files: dict[str, os.stat_result]) -> Path:
    listing = [(name, status.st_size, status.st_mtime_ns) for name, status in files.items()]
    return cache / f"stdlib-text-{sha256_of_json([max_bytes, str(root), listing])[:16]}"


def _find_damage(folder: Path) -> str | None:
    sums, paths = read_json(folder / "sha256.json"), [folder / f"{split}.txt" for split in SPLITS]
    if not isinstance(sums, dict):
        return "sha256.json is missing or damaged"
    wrong = [path for path in paths if not path.is_file() or sha256_of_file(path) != sums.get(path.stem)]
    return f"{wrong[0].name} is not what was written" if wrong else None


def list_library_files(root: Path) -> dict[str, os.stat_result]:
    """{relative path: status} of the source files, in the order of the paths."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".py" and path.is_file():
                found[path.relative_to(root).as_posix()] = path.stat()
    return dict(sorted(found.items()))


def split_library_files(root: Path, names: list[str], max_bytes: int) -> dict[str, bytes]:
    """{split: text} of the named files, as `standard_library_files` describes it."""
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
