"""The folder of an encoded data set: its files, and whether they are intact.

<split>.bin       the ids of a split (token_files.py)
vocabulary.json   the vocabulary
meta.json         sizes, types, checksums, the fingerprint of ids and vocabulary, and a digest of meta.json itself
checked.json      when the content of which token files was compared with their checksums

Text is encoded again if anything is damaged. Files of ids that belong to the user cannot be made again, so damage there
is an error.
"""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from txl.data.block_checksums import BlockChecksums, first_damaged_byte
from txl.data.token_files import token_dtype
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.files import read_json, sha256_of_file, sha256_of_json, write_json
from txl.system.hang_watch import note_progress

SplitEntry = dict[str, Any]  # what meta.json says about a split: tokens, sha256, and more (see `open_token_file`)

META, VOCABULARY, CHECKED = "meta.json", "vocabulary.json", "checked.json"
CHECK_HOLDS = 3600.0  # seconds for which processes rely on the check of another one, if the file is the same
BLOCK = 1 << 22  # ids that are read at a time


def write_corpus_folder(
    folder: Path, vocabulary: Vocabulary, splits: dict[str, SplitEntry], key: dict[str, Any]
) -> None:
    """Complete a folder whose token files are written.

    Args:
        folder: The folder of the token files.
        vocabulary: The vocabulary of the ids.
        splits: The entry of each split.
        key: Everything that the folder depends on (`TokenSource.key`).
    """
    write_json(folder / VOCABULARY, vocabulary.to_dict())
    meta = {
        "dtype": token_dtype(len(vocabulary)).name,
        "vocab_size": len(vocabulary),
        "vocab_bytes": (folder / VOCABULARY).stat().st_size,
        "vocab_sha256": sha256_of_file(folder / VOCABULARY),
        "splits": splits,
        "sources": key["sources"],
        "key": sha256_of_json(key),
        "fingerprint": corpus_fingerprint(vocabulary, splits),
    }
    _write_meta(folder, meta)


def corpus_fingerprint(vocabulary: Vocabulary, splits: dict[str, SplitEntry]) -> str:
    """A digest of ids and vocabulary: where the encoded files were does not matter.

    Sentences without order are shuffled file by file, so the number of tokens of each file matters for them.
    """
    content: list[Any] = [vocabulary.fingerprint, {split: entry["sha256"] for split, entry in splits.items()}]
    content += [entry["shards"] for entry in splits.values() if "shards" in entry]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json; None if it is missing or damaged."""
    meta = read_json(folder / META)
    if not isinstance(meta, dict) or not isinstance(meta.get("splits"), dict):
        return None
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return rest if meta.get("digest") in (None, sha256_of_json(rest)) else None


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    write_json(folder / META, meta | {"digest": sha256_of_json(meta)})


def open_token_file(folder: Path, meta: dict[str, Any], split: str) -> np.ndarray:
    """[tokens] ids of a split, memory-mapped, read-only. `meta` is the content of meta.json.

    A split's entry may name a `file`, a `dtype` and an `offset` in bytes: ids that are in a file of the user.
    """
    path, dtype, offset = _token_file(folder, meta, split)
    return np.memmap(path, dtype, "r", offset, shape=(meta["splits"][split]["tokens"],))


def _token_file(folder: Path, meta: dict[str, Any], split: str) -> tuple[Path, np.dtype, int]:
    """(path, type of the integers, offset of the first one in bytes) of a split."""
    entry = meta["splits"][split]
    dtype = np.dtype(entry.get("dtype", meta["dtype"]))
    return folder / entry.get("file", f"{split}.bin"), dtype, entry.get("offset", 0)


# --------------------------------------------------------------------------- damage


class DamagedError(Exception):
    """A file of the folder is not as it was written; the message says which one and what is wrong."""


@dataclass(frozen=True)
class StoredCorpus:
    """A folder that may hold an encoded data set.

    Args:
        folder: The folder; it need not exist.
        key: `TokenSource.key` of the data set that it must hold.
        splits: The splits whose ids are going to be read; the content of the others is not compared.
    """

    folder: Path
    key: dict[str, Any]
    splits: tuple[str, ...]

    def is_checked(self) -> bool:
        """Whether the folder is complete, and some process compared the ids with their checksums a short time ago."""
        try:
            meta = self._check_small_files()
            return all(self._was_checked(meta, split) for split in self._read_splits(meta))
        except DamagedError:
            return False

    def find_damage(self) -> str | None:
        """What is damaged or missing in the folder; None: nothing. Reads the ids unless `is_checked`.

        Raises ConfigError if a file of ids that belongs to the user is damaged.
        """
        try:
            meta = self._check_small_files()
            if any("crc32" not in entry for entry in meta["splits"].values()):
                meta = self._add_checksums(meta)
            for split in self._read_splits(meta):
                if not self._was_checked(meta, split):
                    self._check_ids(meta, split)
        except DamagedError as error:
            return str(error)
        return None

    def _read_splits(self, meta: dict[str, Any]) -> list[str]:
        return [split for split in self.splits if split in meta["splits"]]

    def _check_small_files(self) -> dict[str, Any]:
        """The content of meta.json, after everything was checked but the ids. Raises DamagedError."""
        meta = read_meta(self.folder)
        if meta is None:
            raise DamagedError(f"{META} is missing or damaged")
        try:
            if meta.get("key", sha256_of_json(self.key)) != sha256_of_json(self.key):
                raise DamagedError(f"{META} belongs to another data set")
            for path in (self.folder / VOCABULARY, self.folder / CHECKED):
                if os.path.lexists(path) and not path.is_file():
                    raise DamagedError(f"{path.name} is not a file")
            self._check_vocabulary(meta)
            for split in meta["splits"]:
                path, dtype, _ = _token_file(self.folder, meta, split)
                size = meta["splits"][split]["tokens"] * dtype.itemsize
                # The size of a file of the user is part of the key.
                if path.parent == self.folder and not (path.is_file() and path.stat().st_size == size):
                    raise DamagedError(f"{path.name} has not its {size:,} bytes")
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise DamagedError(f"{META} is damaged: {error!r}") from None
        return meta

    def _check_vocabulary(self, meta: dict[str, Any]) -> None:
        path = self.folder / VOCABULARY
        if not path.is_file():
            raise DamagedError(f"{VOCABULARY} is missing")
        if "vocab_sha256" in meta:
            right = sha256_of_file(path) == meta["vocab_sha256"]
        else:  # a folder of an earlier version
            vocabulary = vocabulary_from_dict(read_json(path) or {})
            right = corpus_fingerprint(vocabulary, meta["splits"]) == meta["fingerprint"]
        if not right:
            raise DamagedError(f"{VOCABULARY} is not what was written")

    # ------------------------------------------------------------------ ids

    def _check_ids(self, meta: dict[str, Any], split: str) -> None:
        """Compare the ids with their checksums, and note that they are right. Raises DamagedError."""
        path, dtype, offset = _token_file(self.folder, meta, split)
        entry, stamp = meta["splits"][split], _stamp(path)
        place = first_damaged_byte(path, offset, entry["tokens"] * dtype.itemsize, entry["crc32"])
        if place is not None:
            self._refuse_if_of_user(path, split, meta, (place - offset) // dtype.itemsize)
            raise DamagedError(f"{path.name} is not what was written, from byte {place:,} on")
        self._note_check(split, stamp)

    def _refuse_if_of_user(self, path: Path, split: str, meta: dict[str, Any], first: int) -> None:
        """Raises ConfigError if the ids are in a file of the user; `first` is the first one of the damaged block."""
        if path.parent == self.folder:
            return
        ids, size = open_token_file(self.folder, meta, split), meta["vocab_size"]
        beyond = first + np.flatnonzero((ids[first:] < 0) | (ids[first:] >= size))[:1]
        outside = (
            f", and id {ids[i]} at {i:,} is outside the vocabulary of {size:,}"
            if (i := next(iter(beyond), None))
            else ""
        )
        raise ConfigError(
            f"data.{split}={path} is damaged: its size and time are those of its first check, but its ids from "
            f"position {first:,} of {split} on are not{outside}; restore the file, or touch it if the change is meant"
        )

    def _add_checksums(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Complete the meta.json of an earlier version, after all ids were compared with their sha256."""
        splits = {}
        for split, entry in meta["splits"].items():
            ids = open_token_file(self.folder, meta, split)
            narrow, digest, checksums = token_dtype(meta["vocab_size"]), hashlib.sha256(), BlockChecksums()
            for start in range(0, len(ids), BLOCK):
                block = ids[start : start + BLOCK]
                digest.update(block.astype(narrow).tobytes())
                checksums.update(block.tobytes())
                note_progress()
            if digest.hexdigest() != entry["sha256"]:
                self._refuse_if_of_user(_token_file(self.folder, meta, split)[0], split, meta, 0)
                raise DamagedError(f"{split}.bin is not what was written")
            splits[split] = entry | {"crc32": checksums.values}
        vocabulary = sha256_of_file(self.folder / VOCABULARY)
        complete = meta | {"splits": splits, "vocab_sha256": vocabulary, "key": sha256_of_json(self.key)}
        with contextlib.suppress(OSError):  # a cache that may not be written: the next process does the same
            _write_meta(self.folder, complete)
        return complete

    # ------------------------------------------------------------------ what other processes found

    def _was_checked(self, meta: dict[str, Any], split: str) -> bool:
        checks = read_json(self.folder / CHECKED)
        check = checks.get(split) if isinstance(checks, dict) else None
        path = _token_file(self.folder, meta, split)[0]
        return (
            "crc32" in meta["splits"][split]
            and isinstance(check, list)
            and check[:-1] == _stamp(path)
            and isinstance(check[-1], float)
            and abs(time.time() - check[-1]) < CHECK_HOLDS
        )

    def _note_check(self, split: str, stamp: list[int]) -> None:
        checks = read_json(self.folder / CHECKED)
        noted = (checks if isinstance(checks, dict) else {}) | {split: [*stamp, time.time()]}
        with contextlib.suppress(OSError):  # a cache that may not be written: every process checks
            write_json(self.folder / CHECKED, noted)


def _stamp(path: Path) -> list[int]:
    """What changes when a file is written or replaced. Nobody can set the time of the last change of its status."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
