"""Text typed by a person as token ids, and names of tokens as ids."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError

MOST_FILE_NAME = 255  # bytes, of most file systems

FILE_OPTIONS = {"text": "task=score file=FILE", "prompt": "prompts=FILE"}  # what takes a file instead


def read_text_argument(key: str, value: str) -> str:
    """The text that an option gives: `-` is standard input.

    Raises ConfigError if it is empty, or the name of a file that exists: probably its content is meant.
    """
    if len(value) <= MOST_FILE_NAME and value != "-" and Path(value).is_file():
        raise ConfigError(
            f"{key}={value} is the name of a file, and {key}= takes the text itself; for the file's content write "
            f"{FILE_OPTIONS[key]}, or {key}=- < {value}"
        )
    text = _standard_input() if value == "-" else value
    if not text.strip():
        raise ConfigError("the text is empty: write something")
    return text


def _standard_input() -> str:
    """All of standard input as UTF-8. Bytes that are none become surrogates, which stand for them in Python."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if binary is None else str(binary.read(), "utf-8", "surrogateescape")


def unescape(text: str) -> str:
    r"""A text from the command line with `\n` and `\t` as line break and tab, and `\\` as one backslash."""
    escapes = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: escapes[found[0]], text)


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
