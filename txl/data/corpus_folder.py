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

from txl.data.token_files import TokenFile, token_dtype
from txl.data.vocabulary import Vocabulary
from txl.files import read_json, write_json


def write_corpus_folder(folder: Path, vocabulary: Vocabulary, files: list[TokenFile], sources: list[Any]) -> None:
    """Complete a folder whose token files are written.

    Args:
        folder: The folder of the token files.
        vocabulary: The vocabulary of the ids.
        files: The token file of each split.
        sources: What meta.json says about the files that were encoded.
    """
    write_json(folder / "vocabulary.json", vocabulary.to_dict())
    meta = {
        "dtype": token_dtype(len(vocabulary)).name,
        "vocab_size": len(vocabulary),
        "vocab_bytes": (folder / "vocabulary.json").stat().st_size,
        "splits": {file.split: file.entry() for file in files},
        "sources": sources,
        "fingerprint": corpus_fingerprint(vocabulary, files),
    }
    write_json(folder / "meta.json", meta)


def corpus_fingerprint(vocabulary: Vocabulary, files: list[TokenFile]) -> str:
    """A digest of ids and vocabulary: where the encoded files were does not matter.

    Sentences without order are shuffled file by file, so the number of tokens of each file matters for them.
    """
    content: list[Any] = [vocabulary.fingerprint, {file.split: file.hash.hexdigest() for file in files}]
    content += [file.shards for file in files if file.shards]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_complete_corpus(folder: Path) -> bool:
    """Whether meta.json and all files that it lists are there, with the sizes that it lists."""
    meta = read_json(folder / "meta.json")
    if meta is None:
        return False
    width = np.dtype(meta["dtype"]).itemsize
    sizes = {f"{split}.bin": entry["tokens"] * width for split, entry in meta["splits"].items()}
    sizes["vocabulary.json"] = meta["vocab_bytes"]
    files = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())
