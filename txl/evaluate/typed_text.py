"""Text typed by a person as token ids, and names of tokens as ids."""

import sys
from collections.abc import Sequence

import numpy as np

from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError


def read_text_argument(value: str) -> str:
    """The text that an option names: `-` is standard input. Raises ConfigError if it is empty."""
    text = _standard_input() if value == "-" else value
    if not text.strip():
        raise ConfigError("the text is empty: write something")
    return text


def _standard_input() -> str:
    """All of standard input as UTF-8. Bytes that are none become surrogates, which stand for them in Python."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if binary is None else str(binary.read(), "utf-8", "surrogateescape")


def count_unknown(ids: np.ndarray, vocab: Vocabulary) -> int:
    """How many of these tokens stand for text outside of the vocabulary."""
    return 0 if vocab.unk_id is None else int((ids == vocab.unk_id).sum())


def token_ids(names: Sequence[str], vocab: Vocabulary) -> list[int]:
    """The ids of tokens by name; `eos` is the token that ends a line or a text, whatever it is called.

    Raises ConfigError for a name that is not in the vocabulary.
    """
    ids = {str(token): i for i, token in enumerate(vocab.tokens)} if names else {}
    if vocab.eos_id is not None:
        ids.setdefault("eos", vocab.eos_id)
    for name in names:
        if name not in ids:
            raise ConfigError(f"stop_tokens={name} is none of the {len(vocab):,} {vocab.noun} of the vocabulary")
    return [ids[name] for name in names]
