"""Numbers as tokens: ids that another program made, with or without names to show them by."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from txl.config.data import DataConfig
from txl.data.text_blocks import decode_utf8
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError, quoted


class IdsVocabulary(Vocabulary):
    """The ids from 0 to size - 1, written as numbers or by their names, with spaces between them.

    Args:
        size: Number of ids.
        names: The names of the first ids; ids without a name are written as numbers.
    """

    kind = "ids"
    noun = "tokens"

    def __init__(self, size: int, names: Sequence[str] = ()):
        self.size, self.names = size, tuple(names)

    def __len__(self) -> int:
        return self.size

    @property
    def tokens(self) -> Sequence[str | int]:
        """The names, and the numbers of the ids without one."""
        numbers = range(len(self.names), self.size)
        return [*self.names, *numbers] if self.names else numbers

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: i for i, name in reversed(list(enumerate(self.names)))}  # the first of equal names

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids of names or numbers between white space. Raises ConfigError for anything else."""
        return np.array([self._id_of(word) for word in decode_utf8(text).split()], np.int64)

    def _id_of(self, word: str) -> int:
        found = self._ids.get(word)
        if found is None and word.isascii() and word.isdecimal() and len(self.names) <= int(word) < self.size:
            found = int(word)
        if found is None:
            form = "a name of data.vocab_file" if self.names else f"a number from 0 to {self.size - 1}"
            raise ConfigError(
                f"{quoted(word)} is no token of this model; write tokens with spaces between them, each {form}"
            )
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The names or numbers with spaces between them."""
        return " ".join(self.names[i] if i < len(self.names) else str(int(i)) for i in ids)

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON."""
        return {"kind": self.kind, "size": self.size} | ({"names": list(self.names)} if self.names else {})

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self:
        """data.vocab_size ids, or as many as data.vocab_file has lines; each line is a name, in the order of the ids.

        Raises ConfigError if neither is given, and if there are more names than ids.
        """
        names = _read_names(files["vocab_file"]) if "vocab_file" in files else []
        if data.vocab_size is None and not names:
            raise ConfigError(
                "data.vocab_size=null is needed by data.vocab=ids: how many ids there are, the largest + 1"
            )
        size = data.vocab_size or len(names)
        if len(names) > size:
            raise ConfigError(
                f"data.vocab_file={files['vocab_file']} has {len(names):,} lines for data.vocab_size={size} ids; it "
                "needs one name per line in the order of the ids"
            )
        return cls(size, names)


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"data.vocab_file={path} is not UTF-8; it needs one name per line") from None
