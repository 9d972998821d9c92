"""Text as the source of token ids: it is cut into splits and encoded with a vocabulary."""

import logging
import time
from pathlib import Path
from typing import Any

from txl.config.data import DataConfig
from txl.data.corpus_folder import write_corpus_folder
from txl.data.find_files import file_stamps, find_text_files
from txl.data.given_vocabulary import GivenVocabulary
from txl.data.splits import split_text
from txl.data.token_source import TokenSource
from txl.data.vocabulary import Vocabulary, vocabulary_class
from txl.errors import ConfigError

log = logging.getLogger(__name__)

FORMAT = 1  # version of the corpus folder; with another number text is encoded again


class TextSource(TokenSource):
    """data.source=text; see `TokenSource`."""

    def __init__(self, data: DataConfig, vocabulary: Vocabulary | None = None):
        self.data = data
        self.text_files = find_text_files(data)
        self.given = GivenVocabulary(data, vocabulary)
        self._stamps, self._vocabulary_key = file_stamps(self.text_files), self.given.key()

    @property
    def files(self) -> list[Path]:
        """The files of the text and of the vocabulary."""
        return [*(path for paths in self.text_files.values() for path in paths), *self.given.files.values()]

    def key(self) -> dict[str, Any]:
        """The stamps of all files, and the options that decide how text becomes ids."""
        data = self.data
        key: dict[str, Any] = {"format": FORMAT, "sources": self._stamps}
        key |= self._vocabulary_key
        if "file" in self.text_files:
            key |= {"split_bytes": data.split_bytes} if data.split_bytes else {"split": data.split}
        return key

    def build(self, folder: Path) -> None:
        """Encode the text of all splits."""
        data, began = self.data, time.perf_counter()
        log.info("encoding data=%s (%s)", data.name, ", ".join(map(_list_briefly, self.text_files.values())))
        encoder = vocabulary_class(data.vocab.name)
        vocabulary, files = encoder.encode_splits(split_text(self.text_files, data), data, folder, self.given.read())
        if (file_stamps(self.text_files), self.given.key()) != (self._stamps, self._vocabulary_key):
            raise ConfigError(f"data={data.name}: its files changed while they were read; start again")
        write_corpus_folder(folder, vocabulary, {file.split: file.entry() for file in files}, self.key())
        log.info("encoded data=%s in %.1f s", data.name, time.perf_counter() - began)


def _list_briefly(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
