"""Text typed by hand as token ids."""

import sys

import numpy as np

from txl.data.vocabulary import Vocabulary, WordVocabulary
from txl.errors import ConfigError


def typed_tokens(text: str, vocab: Vocabulary, end_line: bool) -> tuple[np.ndarray, int]:
    """Ids of text typed by hand (`-`: standard input), and how many of them are unknown.

    Words are separated as in WikiText; `end_line`: its last line ends with `<eos>` too. Sentences begin with it.
    """
    text = sys.stdin.read() if text == "-" else text
    if not text.strip():
        raise ConfigError("the text is empty: write something")
    if not isinstance(vocab, WordVocabulary):
        ids = np.asarray(vocab.encode(text), np.int64)
    else:
        from txl.data.moses import tokenize

        words = [tokenize(line, vocab.ids) for line in text.rstrip("\n").split("\n")]
        lines = [vocab.encode(line, add_eos=False) for line in words]
        ends = len(lines) if end_line else len(lines) - 1
        eos = np.array([vocab.eos_id], np.int64)
        parts = [part for i, line in enumerate(lines) for part in ((line, eos) if i < ends else (line,))]
        ids = np.concatenate([eos, *parts] if vocab.sentences else parts)
    unknown = 0 if vocab.unk_id is None else int((ids == vocab.unk_id).sum())
    return ids.astype(np.int64), unknown
