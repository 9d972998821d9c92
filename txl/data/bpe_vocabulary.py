"""GPT-2's byte pairs as tokens, from its two files on disk.

The files are a table of tokens (vocab.json, encoder.json) and the merges in the order of their rank (merges.txt,
vocab.bpe). They become the same tokenizer that a tokenizer.json describes (tokenizer_vocabulary.py).

GPT-2's pattern cuts a text into pieces. The bytes of a piece are each written as one printable character, and pairs of
them are merged until no merge applies (Radford et al. 2019). Every text can be encoded, and decoding is exact.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

from txl.config.data import DataConfig
from txl.data.tokenizer_vocabulary import TokenizerVocabulary
from txl.errors import ConfigError, quoted

END = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class BpeVocabulary(TokenizerVocabulary):
    """Tokens by id, and merges ("a b") by rank. If `<|endoftext|>` is among the tokens, it is the eos."""

    kind = "bpe"

    def __init__(self, tokens: Iterable[str], merges: Iterable[str]):
        table = {token: i for i, token in enumerate(tokens)}
        self.merges = list(merges)
        model = {"type": "BPE", "vocab": table, "merges": self.merges, "unk_token": None}
        parts = {"normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL}
        whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
        super().__init__(whole | parts | {"model": model}, END if END in table else None)

    @property
    def joins_words(self) -> bool:
        """Never: a token is written as its bytes."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The content of the two files as JSON."""
        return {"kind": self.kind, "tokens": list(self.tokens), "merges": self.merges}

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self:
        """The tokens and merges of data.vocab_file and data.merges_file.

        Raises ConfigError if a file has other content, or the two do not belong together.
        """
        return cls(*read_gpt2_files(files["vocab_file"], files["merges_file"]))


@cache
def byte_of_character() -> dict[str, int]:
    """{character of a token: the byte that it stands for}.

    Bytes that are printable characters in Latin-1 stand for themselves. The 68 others, in order, are written as the
    characters from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


# --------------------------------------------------------------------------- the two files


def read_gpt2_files(vocab_file: Path, merges_file: Path) -> tuple[list[str], list[str]]:
    """(tokens by id, merges by rank). Raises ConfigError if a file has other content, or they do not fit together."""
    table, ranks = f"data.vocab_file={vocab_file}", f"data.merges_file={merges_file}"
    tokens = _read_tokens(vocab_file, table)
    merges = _read_merges(merges_file, ranks)
    known = set(tokens)
    made = set(byte_of_character())
    for number, merge in merges.items():
        left, _, right = merge.partition(" ")
        for token in (left, right, left + right):
            if token not in known:
                raise ConfigError(
                    f"{ranks}: line {number}: {quoted(merge)} needs the token {quoted(token)}, which {table} lacks: "
                    "the two files do not belong together; take both from the same model"
                )
        made.add(left + right)
    for token in tokens:
        if not byte_of_character().keys() >= set(token):
            raise ConfigError(
                f"{table}: its token {quoted(token)} has a character that stands for no byte; not GPT-2's kind"
            )
        if token not in made and not (token.startswith("<") and token.endswith(">")):
            raise ConfigError(
                f"{table}: no merge of {ranks} makes its token {quoted(token)}: the two files do not belong together; "
                "take both from the same model"
            )
    return tokens, list(merges.values())


def _read_tokens(path: Path, name: str) -> list[str]:
    """The tokens by id."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON ({error}); give GPT-2's vocab.json or its like") from None
    if not isinstance(table, dict) or not all(type(i) is int for i in table.values()):
        raise ConfigError(f"{name} is no table of tokens and their ids; give GPT-2's vocab.json or its like")
    tokens = sorted(table, key=table.__getitem__)
    for expected, token in enumerate(tokens):
        if table[token] != expected:
            raise ConfigError(f"{name}: the id {expected} is missing or used twice; ids go from 0 to {len(tokens) - 1}")
    for symbol, byte in byte_of_character().items():
        if symbol not in table:
            raise ConfigError(
                f"{name} has no token {symbol!r} for the byte 0x{byte:02x}: not byte-level, as GPT-2's is; text with "
                "that byte could not be encoded"
            )
    return tokens


def _read_merges(path: Path, name: str) -> dict[int, str]:
    """{line number: "a b"} in the order of the rank."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8; give GPT-2's merges.txt or its like") from None
    merges: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        if len(line.split(" ")) != 2 or not all(line.split(" ")):
            raise ConfigError(
                f"{name}: line {number} is no merge, two tokens with one space between them: {quoted(line)}"
            )
        if line in seen:
            raise ConfigError(f"{name}: line {number}: {quoted(line)} is in line {seen[line]} already; leave one out")
        merges[number], seen[line] = line, number
    return merges
