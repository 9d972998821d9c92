"""The folder of an encoded data set.

<split>.bin       the ids of a split (token_files.py)
vocabulary.json   the vocabulary
meta.json         sizes, types, digests, and the fingerprint of ids and vocabulary
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from txl.data.find_files import FileStamp
from txl.data.token_files import token_dtype
from txl.data.vocabulary import Vocabulary
from txl.files import read_json, write_json

SplitEntry = dict[str, Any]  # what meta.json says about a split: tokens, sha256, and more (see `open_token_file`)


def write_corpus_folder(
    folder: Path, vocabulary: Vocabulary, splits: dict[str, SplitEntry], sources: list[FileStamp]
) -> None:
    """Complete a folder whose token files are written.

    Args:
        folder: The folder of the token files.
        vocabulary: The vocabulary of the ids.
        splits: The entry of each split.
        sources: The stamps of the files that the ids come from.
    """
    write_json(folder / "vocabulary.json", vocabulary.to_dict())
    meta = {
        "dtype": token_dtype(len(vocabulary)).name,
        "vocab_size": len(vocabulary),
        "vocab_bytes": (folder / "vocabulary.json").stat().st_size,
        "splits": splits,
        "sources": sources,
        "fingerprint": corpus_fingerprint(vocabulary, splits),
    }
    write_json(folder / "meta.json", meta)


def corpus_fingerprint(vocabulary: Vocabulary, splits: dict[str, SplitEntry]) -> str:
    """A digest of ids and vocabulary: where the encoded files were does not matter.

    Sentences without order are shuffled file by file, so the number of tokens of each file matters for them.
    """
    content: list[Any] = [vocabulary.fingerprint, {split: entry["sha256"] for split, entry in splits.items()}]
    content += [entry["shards"] for entry in splits.values() if "shards" in entry]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_token_file(folder: Path, meta: dict[str, Any], split: str) -> np.ndarray:
    """[tokens] ids of a split, memory-mapped, read-only. `meta` is the content of meta.json.

    A split's entry may name a `file`, a `dtype` and an `offset` in bytes: ids that are in a file of the user.
    """
    path, dtype, offset = _token_file(folder, meta, split)
    return np.memmap(path, dtype, "r", offset, shape=(meta["splits"][split]["tokens"],))


def is_complete_corpus(folder: Path) -> bool:
    """Whether meta.json and all files of the folder that it lists are there, with the sizes that it lists."""
    meta = read_json(folder / "meta.json")
    if meta is None:
        return False
    sizes = {folder / "vocabulary.json": meta["vocab_bytes"]}
    for split, entry in meta["splits"].items():
        path, dtype, _ = _token_file(folder, meta, split)
        if path.parent == folder:  # a file of the user is part of the folder's name
            sizes[path] = entry["tokens"] * dtype.itemsize
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())


def _token_file(folder: Path, meta: dict[str, Any], split: str) -> tuple[Path, np.dtype, int]:
    """(path, type of the integers, offset of the first one in bytes) of a split."""
    entry = meta["splits"][split]
    dtype = np.dtype(entry.get("dtype", meta["dtype"]))
    return folder / entry.get("file", f"{split}.bin"), dtype, entry.get("offset", 0)
