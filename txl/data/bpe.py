"""GPT-2's byte-pair encoding, from its two files on disk: a table of tokens (vocab.json, encoder.json) and the merges
in order of their rank (merges.txt, vocab.bpe). The library `tokenizers` does the work; nothing is ever fetched.

A text is cut into pieces by GPT-2's pattern, a piece is its bytes, each written as one printable character, and pairs
are merged until no merge is left (Radford et al. 2019). Every text can be encoded, and decoded again exactly.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from txl.data.text_blocks import Span, as_text, pretoken_blocks
from txl.errors import ConfigError
from txl.files import sha256_of_json

END = "<|endoftext|>"


MULTIPLE = 8  # matrices of such a width are fast on a GPU


GROUP = 16  # blocks that are encoded at a time, on all cores


class BpeVocabulary:
    """Tokens by id, and merges ("a b") by rank; padded at its end with ids that no text has.

    `<|endoftext|>`, where it is among the tokens, is its id wherever the text has it.
    """

    kind, unk_id = "bpe", None

    def __init__(self, tokens: Iterable[str], merges: Iterable[str]):
        self.tokens, self.merges = tuple(tokens), tuple(merges)
        self.eos_id = self.tokens.index(END) if END in self.tokens else None

    def __len__(self) -> int:
        return -(-len(self.tokens) // MULTIPLE) * MULTIPLE

    @cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer, models, pre_tokenizers

        merges = [tuple(merge.split(" ")) for merge in self.merges]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(self.tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if self.eos_id is not None:
            tokenizer.add_special_tokens([END])
        return tokenizer

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids, [T] int64. ConfigError for what is not UTF-8."""
        text = as_text(text.encode(errors="surrogateescape") if isinstance(text, str) else text)
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(found.ids, np.int64) for found in self._tokenizer.encode_batch_fast(texts)]

    def encode_span(self, span: Span) -> Iterator[np.ndarray]:
        """Ids of a text file, and `<|endoftext|>`, a few blocks at a time."""
        group = []
        for block in pretoken_blocks(span):
            group.append(block)
            if len(group) == GROUP:
                yield from self.encode_all(group)
                group = []
        yield from self.encode_all(group)
        if self.eos_id is not None:
            yield np.array([self.eos_id])

    def decode(self, ids: Iterable[int]) -> str:
        """What is not UTF-8 is replaced by a mark; the ids that only pad are nothing."""
        table, known = byte_of(), len(self.tokens)
        symbols = "".join(self.tokens[i] for i in ids if i < known)
        return bytes(table[symbol] for symbol in symbols).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokens": list(self.tokens), "merges": list(self.merges)}

    @property
    def fingerprint(self) -> str:
        return sha256_of_json(self.to_dict())


@cache
def byte_of() -> dict[str, int]:
    """The byte that a character of a token stands for.

    Bytes that Latin-1 shows as a mark stand for themselves, the 68 others, in order, for the characters from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


# --------------------------------------------------------------------------- the two files


def read_bpe(vocab_file: Path, merges_file: Path) -> BpeVocabulary:
    """ConfigError for files that are not what they should be, or not of the same encoding."""
    table, ranks = f"data.vocab_file={vocab_file}", f"data.merges_file={merges_file}"
    tokens = _read_tokens(vocab_file, table)
    merges = _read_merges(merges_file, ranks)
    known = set(tokens)
    made = set(byte_of())
    for number, merge in merges.items():
        left, _, right = merge.partition(" ")
        for token in (left, right, left + right):
            if token not in known:
                raise ConfigError(
                    f"{ranks}: line {number}: {merge!r} needs the token {token!r}, which {table} lacks: the two files "
                    "do not belong together; take both from the same model"
                )
        made.add(left + right)
    for token in tokens:
        if not byte_of().keys() >= set(token):
            raise ConfigError(f"{table}: its token {token!r} has a character that stands for no byte; not GPT-2's kind")
        if token not in made and not (token.startswith("<") and token.endswith(">")):
            raise ConfigError(
                f"{table}: no merge of {ranks} makes its token {token!r}: the two files do not belong together; take "
                "both from the same model"
            )
    return BpeVocabulary(tokens, merges.values())


def _read_tokens(path: Path, name: str) -> list[str]:
    """By id."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON ({error}); give GPT-2's vocab.json or its like") from None
    if not isinstance(table, dict) or not all(type(i) is int for i in table.values()):
        raise ConfigError(f"{name} is no table of tokens and their ids; give GPT-2's vocab.json or its like")
    tokens = sorted(table, key=table.__getitem__)
    for expected, token in enumerate(tokens):
        if table[token] != expected:
            raise ConfigError(
                f"{name}: the id {expected} is missing or stands twice; ids go from 0 to {len(tokens) - 1}"
            )
    for symbol, byte in byte_of().items():
        if symbol not in table:
            raise ConfigError(
                f"{name} has no token {symbol!r} for the byte 0x{byte:02x}: not byte-level, as GPT-2's is; text with "
                "that byte could not be encoded"
            )
    return tokens


def _read_merges(path: Path, name: str) -> dict[int, str]:
    """{line number: "a b"}, in order of their rank."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8; give GPT-2's merges.txt or its like") from None
    merges, seen = {}, {}
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        if len(line.split(" ")) != 2 or not all(line.split(" ")):
            raise ConfigError(f"{name}: line {number} is no merge, two tokens with one space between them: {line!r}")
        if line in seen:
            raise ConfigError(f"{name}: line {number}: {line!r} stands in line {seen[line]} already; leave one out")
        merges[number], seen[line] = line, number
    return merges
