"""Encode the text of a data set into a folder of token files."""

import logging
from pathlib import Path
from typing import Any

from txl.config.data import DataConfig
from txl.data.corpus_folder import write_corpus_folder
from txl.data.text_blocks import SplitSpans
from txl.data.vocabulary import Vocabulary, vocabulary_class

log = logging.getLogger(__name__)


def encode_text(
    spans: SplitSpans, data: DataConfig, folder: Path, sources: list[Any], given: Vocabulary | None = None
) -> None:
    """Write the token files of all splits, the vocabulary and meta.json.

    Args:
        spans: The text of each split.
        data: Options of the data set.
        folder: An existing empty folder.
        sources: What meta.json says about the files that the spans belong to.
        given: The vocabulary to use; None: one is made of the text.

    Raises:
        ConfigError: If the text cannot be encoded.
    """
    vocabulary, files = vocabulary_class(data.vocab.name).encode_splits(spans, data, folder, given)
    if data.vocab_size not in (None, len(vocabulary)):
        log.warning(
            "data.vocab_size=%d was expected, the text has %d: not the published text, or prepared in another way",
            data.vocab_size,
            len(vocabulary),
        )
    write_corpus_folder(folder, vocabulary, files, sources)
