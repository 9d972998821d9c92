"""Where the token ids of a data set come from: `TokenSource`. Each source is a class in a module of its own.

By convention, data.source=text is the class TextSource in txl/data/text_source.py, and so on.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from txl.config.data import DataConfig
from txl.data.vocabulary import Vocabulary


class TokenSource(Protocol):
    """The files of a data set, and how a corpus folder (corpus_folder.py) is made of them."""

    def __init__(self, data: DataConfig, vocabulary: Vocabulary | None = None):
        """Find the files, and read none of them.

        Args:
            data: Options of the data set.
            vocabulary: The vocabulary to use if the files that hold it (data.vocab_file) no longer exist.

        Raises:
            ConfigError: If a file is missing, empty, or not readable.
        """

    @property
    def files(self) -> list[Path]:
        """All files that are read, also those of the vocabulary."""

    def key(self) -> dict[str, Any]:
        """Everything that the corpus folder depends on, as JSON: two sources with the same key make the same folder."""

    def build(self, folder: Path) -> None:
        """Fill an existing empty folder. Raises ConfigError if a file has no valid content or changes meanwhile."""


def open_source(data: DataConfig, vocabulary: Vocabulary | None = None) -> TokenSource:
    """The source that data.source names, found by the convention that the module's docstring describes.

    For the parameters and errors see `TokenSource.__init__`.
    """
    found = getattr(import_module(f"txl.data.{data.source.name}_source"), f"{data.source.name.title()}Source")
    return cast(type[TokenSource], found)(data, vocabulary)
