"""A vocabulary that is not made of the text: files hold it, or a checkpoint if the files no longer exist."""

import logging
from pathlib import Path
from typing import Any

from txl.config.data import VOCAB_FILE_OPTIONS, VOCAB_OPTIONS, DataConfig
from txl.data.find_files import FileStamp, file_stamps, find_vocabulary_files
from txl.data.vocabulary import Vocabulary, vocabulary_class
from txl.errors import ConfigError

log = logging.getLogger(__name__)


class GivenVocabulary:
    """The files that options of the data set name (data.vocab_file and others), or what replaces them.

    Args:
        data: Options of the data set.
        replacement: The vocabulary to use if a file that is named does not exist.

    Raises:
        ConfigError: If a file is missing and there is no replacement.
    """

    def __init__(self, data: DataConfig, replacement: Vocabulary | None = None):
        self.data = data
        self.files: dict[str, Path] = {}  # {option: path}
        self.replacement: Vocabulary | None = None
        try:
            self.files = find_vocabulary_files(data)
        except ConfigError as error:
            if replacement is None:
                raise
            log.info("%s; the checkpoint holds the vocabulary", error)
            self.replacement = replacement

    def stamps(self) -> list[FileStamp]:
        """The stamps that the files have now."""
        return file_stamps({key: [path] for key, path in self.files.items()})

    def key(self) -> dict[str, Any]:
        """Everything that the vocabulary depends on beside a text, as JSON.

        That is its kind and its options; and the stamps of its files, or the fingerprint of what replaces them.
        """
        kind = self.data.vocab
        options = {key: getattr(self.data, key) for key in kind.facts.options if key not in VOCAB_FILE_OPTIONS}
        names: dict[str, Any] = {key: options.pop(key) for key in ("eos", "unk", "sentences") if key in options}
        key = {"vocab": kind.name, **options}
        if any(value != VOCAB_OPTIONS[name] for name, value in names.items()):
            key |= names
        content = self.stamps() if self.replacement is None else self.replacement.fingerprint
        return key | ({"vocabulary": content} if content else {})

    def read(self) -> Vocabulary | None:
        """The vocabulary; None: no option names a file. Raises ConfigError for a file with other content."""
        return self.replacement or vocabulary_class(self.data.vocab.name).from_files(self.files, self.data)
