"""Bytes as tokens: one unbroken stream without `<eos>`."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from txl.config.data import DataConfig
from txl.data.text_blocks import SplitSpans, byte_blocks
from txl.data.token_files import TokenFile
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError


class ByteVocabulary(Vocabulary):
    """Byte values in their order; there is no `<unk>`."""

    kind = "byte"
    noun = "bytes"

    def __init__(self, values: Iterable[int]):
        self.values = np.array(sorted(values), np.uint8)
        self.table = np.full(256, -1)  # the id of each byte value; -1: none
        self.table[self.values] = np.arange(len(self.values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The byte values."""
        return tuple(self.values.tolist())

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids of the bytes, or of the UTF-8 bytes of a str. Raises ConfigError for an unknown byte."""
        data = np.frombuffer(text.encode(errors="surrogateescape") if isinstance(text, str) else text, np.uint8)
        ids = self.table[data]
        if len(ids) and ids.min() < 0:
            value = data[ids < 0][0]
            raise ConfigError(
                f"the byte 0x{value:02x} ({chr(value)!r}) is not in the vocabulary: none of the {len(self)} byte "
                "values of the training corpus is it; leave it out"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are not UTF-8 are replaced by U+FFFD."""
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        return bytes(self.values[ids]).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON."""
        return {"kind": self.kind, "values": self.values.tolist()}

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: Vocabulary | None
    ) -> tuple[Vocabulary, list[TokenFile]]:
        """Encode all splits; the vocabulary is every byte value of any split (see `Vocabulary.encode_splits`)."""
        seen = np.zeros(256, bool)
        for span in chain.from_iterable(spans.values()):
            for block in byte_blocks(span):
                seen[np.frombuffer(block, np.uint8)] = True
        vocabulary = cls(np.flatnonzero(seen).tolist())
        table = vocabulary.table.astype(np.uint8)  # at most 256 ids
        files = []
        for split, parts in spans.items():
            ids = (table[np.frombuffer(block, np.uint8)] for span in parts for block in byte_blocks(span))
            files.append(TokenFile(folder, split, len(vocabulary), vocabulary.unk_id).write(ids))
        return vocabulary, files
