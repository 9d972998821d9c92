"""Text typed by a person as token ids."""

import sys

import numpy as np

from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError


def typed_tokens(text: str, vocab: Vocabulary, end_line: bool) -> tuple[np.ndarray, int]:
    """([T] int64 ids of text typed by a person, the number of unknown tokens among them).

    `text`: `-` reads standard input. `end_line`: the last line is complete, so it ends as the others do. Raises
    ConfigError if the text is empty.
    """
    text = sys.stdin.read() if text == "-" else text
    if not text.strip():
        raise ConfigError("the text is empty: write something")
    ids = vocab.encode_typed(text, end_line)
    unknown = 0 if vocab.unk_id is None else int((ids == vocab.unk_id).sum())
    return ids, unknown
