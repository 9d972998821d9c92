"""The file with the ids of one split: raw integers of the smallest type that holds every id, in native byte order."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from txl.data.block_checksums import BlockChecksums


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


class TokenFile:
    """`<split>.bin` in a folder, while it is written: the number of its tokens, how many are unknown, and their sha256.

    Args:
        folder: An existing folder.
        split: Name of the split.
        vocab_size: Number of ids, which decides the type of the integers.
        unk_id: The id of unknown tokens, which are counted; None: there is none.
        shards: Sentences without order: the number of tokens of each text file; else None.
    """

    def __init__(
        self, folder: Path, split: str, vocab_size: int, unk_id: int | None = None, shards: list[int] | None = None
    ):
        self.split, self.unk_id, self.shards = split, unk_id, shards
        self.tokens = self.unknown = 0
        self.hash, self.checksums = hashlib.sha256(), BlockChecksums()
        self._path, self._dtype = folder / f"{split}.bin", token_dtype(vocab_size)

    def write(self, blocks: Iterable[np.ndarray]) -> Self:
        """Write the ids of all blocks. The file is on disk when this returns."""
        with open(self._path, "wb") as file:
            for ids in blocks:
                data = ids.astype(self._dtype, copy=False).tobytes()
                file.write(data)
                self.hash.update(data)
                self.checksums.update(data)
                self.tokens += len(ids)
                self.unknown += 0 if self.unk_id is None else int(np.count_nonzero(ids == self.unk_id))
            file.flush()
            os.fsync(file.fileno())
        return self

    def entry(self) -> dict[str, Any]:
        """The split's entry in meta.json."""
        entry: dict[str, Any] = {"tokens": self.tokens, "sha256": self.hash.hexdigest(), "unknown": self.unknown}
        entry["crc32"] = self.checksums.values
        return entry | {"shards": self.shards} if self.shards else entry
