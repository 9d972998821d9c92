"""What every vocabulary can do: `Vocabulary`. Each kind (data.vocab) is a class in a module of its own.

By convention, data.vocab=word is the class WordVocabulary in txl/data/word_vocabulary.py, and so on.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import numpy as np

from txl.config.data import DataConfig, TypedText, VocabKind
from txl.data.text_blocks import SplitSpans
from txl.data.token_files import TokenFile
from txl.errors import ConfigError, shortened
from txl.files import sha256_of_json

EOS, UNK = "<eos>", "<unk>"


class Vocabulary(Protocol):
    """Tokens with ids from 0 to len - 1, and the way from text to ids and back.

    The methods with a body are right for most kinds; a class that names this one as its base inherits them.
    """

    kind: ClassVar[str]  # its name in data.vocab
    noun: ClassVar[str]  # what its tokens are called in messages, such as "words"
    typed_text: TypedText = TypedText.moses  # how a person types text; it has a meaning for words only

    def __len__(self) -> int:
        """The number of ids."""

    @property
    def tokens(self) -> Sequence[str | int]:
        """The tokens by id: words, byte values, characters, ... A text never contains ids beyond them."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a line or a text; None: there is none."""
        return None

    @property
    def unk_id(self) -> int | None:
        """The id of everything outside the vocabulary; None: such text is an error."""
        return None

    @property
    def joins_words(self) -> bool:
        """Whether the next token may change how the tokens before it are written (spaces, quotes)."""
        return False

    @property
    def fingerprint(self) -> str:
        """A digest of the content: two vocabularies with the same fingerprint give the same ids for every text."""
        return sha256_of_json(self.to_dict())

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids of a text in the form that the data set has.

        Raises ConfigError for text that is not UTF-8, and for tokens that are not in a vocabulary without `unk_id`.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, in the form that the data set has."""

    def encode_typed(self, text: str, end_line: bool) -> np.ndarray:
        """[T] int64 ids of text typed by a person. `end_line`: the last line is complete, so it ends as the others."""
        return self.encode(text)

    def to_typed_text(self, ids: list[int]) -> str:
        """The text of ids as a person would type it."""
        return self.decode(ids)

    def can_forget(self, ids: list[int]) -> bool:
        """Whether later tokens have the same typed text if these ids are not before them."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON, with its `kind`; `vocabulary_from_dict` is the inverse."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; the values are without `kind`."""
        return cls(**values)

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self | None:
        """The vocabulary that files hold, {option: path}; None: it is made of the text.

        Raises ConfigError for files with other content.
        """
        return None

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: "Vocabulary | None"
    ) -> tuple["Vocabulary", list[TokenFile]]:
        """Encode the text of all splits into token files.

        Args:
            spans: The text of each split.
            data: Options of the data set.
            folder: An existing folder for the token files.
            given: The vocabulary to use, of this class; None: make one of the text.

        Returns:
            The vocabulary, and the token file of each split.

        Raises:
            ConfigError: If the text cannot be encoded.
        """


def vocabulary_class(kind: str) -> type[Vocabulary]:
    """The class of a kind of vocabulary, found by the convention that the module's docstring describes."""
    found = getattr(import_module(f"txl.data.{kind}_vocabulary"), f"{kind.title()}Vocabulary")
    return cast(type[Vocabulary], found)


def vocabulary_from_dict(values: Any) -> Vocabulary:
    """The inverse of `Vocabulary.to_dict`, for every kind. Raises ConfigError for anything else."""
    kind = str(values.get("kind")) if isinstance(values, dict) else ""
    if kind not in VocabKind.__members__:
        raise ConfigError(
            f"a vocabulary has a kind ({', '.join(VocabKind.__members__)}), this one has none: it is damaged"
        )
    try:
        vocabulary = vocabulary_class(kind).from_dict({key: value for key, value in values.items() if key != "kind"})
        assert len(vocabulary) > 0, "it has no tokens"
    except Exception as error:  # whatever other JSON of this kind may lead to
        reason = shortened(f"{type(error).__name__}: {error}")
        raise ConfigError(f"a vocabulary of the kind {kind} is damaged ({reason})") from None
    return vocabulary
