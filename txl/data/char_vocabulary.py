"""Characters (Unicode code points) as tokens: one unbroken stream without `<eos>`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from txl.config.data import DataConfig
from txl.data.text_blocks import SplitSpans, character_blocks, decode_utf8
from txl.data.token_files import TokenFile
from txl.data.vocabulary import UNK, Vocabulary
from txl.errors import ConfigError

CODE_POINTS = 0x110000


class CharVocabulary(Vocabulary):
    """Distinct characters in the order of their code points; `<unk>`, if there is one, comes last."""

    kind = "char"
    noun = "characters"

    def __init__(self, characters: Iterable[str], unk: bool = False):
        self.characters = "".join(sorted(characters))
        self._unk_id = len(self.characters) if unk else None
        self.table = np.full(CODE_POINTS, -1 if self.unk_id is None else self.unk_id, np.int32)  # code point -> id
        self.table[code_points(self.characters)] = np.arange(len(self.characters))

    def __len__(self) -> int:
        return len(self.characters) + (self.unk_id is not None)

    @property
    def unk_id(self) -> int | None:
        """The last id, if there is an `<unk>`."""
        return self._unk_id

    @property
    def tokens(self) -> tuple[str, ...]:
        """The characters, and `<unk>`."""
        return (*self.characters, *([] if self.unk_id is None else [UNK]))

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids. An unknown character becomes `<unk>`; raises ConfigError if there is none."""
        text = decode_utf8(text)
        ids = np.asarray(self.table[code_points(text)], np.int64)
        if len(ids) and ids.min() < 0:
            character = text[int(np.argmax(ids < 0))]
            raise ConfigError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the vocabulary of {len(self)} "
                f"characters, which has no {UNK}; leave it out"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text, with `<unk>` for unknown characters."""
        return "".join(UNK if i == self.unk_id else self.characters[i] for i in ids)

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON."""
        return {"kind": self.kind, "characters": self.characters, "unk": self.unk_id is not None}

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: Vocabulary | None
    ) -> tuple[Vocabulary, list[TokenFile]]:
        """Encode all splits (see `Vocabulary.encode_splits`).

        The vocabulary is the characters of train, and `<unk>` if valid or test have others.
        """
        seen = {split: np.zeros(CODE_POINTS, bool) for split in spans}
        for split, parts in spans.items():
            for span in parts:
                for text in character_blocks(span):
                    seen[split][code_points(text)] = True
        known = seen["train"]
        unk = any((other & ~known).any() for other in seen.values())
        vocabulary = cls(map(chr, np.flatnonzero(known)), unk)
        files = []
        for split, parts in spans.items():
            ids = (vocabulary.table[code_points(text)] for span in parts for text in character_blocks(span))
            files.append(TokenFile(folder, split, len(vocabulary), vocabulary.unk_id).write(ids))
        return vocabulary, files


def code_points(text: str) -> np.ndarray:
    """[T] uint32 code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
