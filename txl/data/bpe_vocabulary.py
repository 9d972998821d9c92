"""GPT-2's byte pairs as tokens, from its two files on disk.

The files are a table of tokens (vocab.json, encoder.json) and the merges in the order of their rank (merges.txt,
vocab.bpe). The library `tokenizers` encodes; nothing is downloaded.

GPT-2's pattern cuts a text into pieces. The bytes of a piece are each written as one printable character, and pairs of
them are merged until no merge applies (Radford et al. 2019). Every text can be encoded, and decoding is exact.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from txl.config.data import DataConfig
from txl.data.text_blocks import Span, SplitSpans, decode_utf8
from txl.data.token_files import TokenFile
from txl.data.verified_blocks import encode_in_blocks
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
MULTIPLE = 8  # matrices of such a width are fast on a GPU


class BpeVocabulary(Vocabulary):
    """Tokens by id, and merges ("a b") by rank. The ids are padded to a multiple of 8 with ids that no text has.

    If `<|endoftext|>` is among the tokens, it is one token wherever a text contains it.
    """

    kind = "bpe"
    noun = "tokens"

    def __init__(self, tokens: Iterable[str], merges: Iterable[str]):
        self._tokens, self.merges = tuple(tokens), tuple(merges)

    def __len__(self) -> int:
        return -(-len(self.tokens) // MULTIPLE) * MULTIPLE

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens, without the padding."""
        return self._tokens

    @cached_property
    def eos_id(self) -> int | None:
        """The id of `<|endoftext|>`."""
        return self.tokens.index(END) if END in self.tokens else None

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models, pre_tokenizers

        merges = [(left, right) for left, right in (merge.split(" ") for merge in self.merges)]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(self.tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if self.eos_id is not None:
            tokenizer.add_special_tokens([END])
        return tokenizer

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids. Raises ConfigError for text that is not UTF-8."""
        text = decode_utf8(text.encode(errors="surrogateescape") if isinstance(text, str) else text)
        return np.array(self.encode_texts([text])[0], np.int64)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts)]

    def encode_span(self, span: Span) -> Iterator[np.ndarray]:
        """The ids of a text file, a block at a time, and then `<|endoftext|>`."""
        yield from encode_in_blocks(span, self.encode_texts)
        if self.eos_id is not None:
            yield np.array([self.eos_id])

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are not UTF-8 are replaced by U+FFFD; padding ids give nothing."""
        bytes_of_characters, known = byte_of_character(), len(self.tokens)
        characters = "".join(self.tokens[i] for i in ids if i < known)
        return bytes(bytes_of_characters[character] for character in characters).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON."""
        return {"kind": self.kind, "tokens": list(self.tokens), "merges": list(self.merges)}

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self:
        """The tokens and merges of data.vocab_file and data.merges_file.

        Raises ConfigError if a file has other content, or the two do not belong together.
        """
        return cls(*read_gpt2_files(files["vocab_file"], files["merges_file"]))

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: Vocabulary | None
    ) -> tuple[Vocabulary, list[TokenFile]]:
        """Encode all splits with the given vocabulary (see `Vocabulary.encode_splits`)."""
        assert isinstance(given, cls), "data.vocab=bpe always comes from files"
        files = []
        for split, parts in spans.items():
            ids = (ids for span in parts for ids in given.encode_span(span))
            files.append(TokenFile(folder, split, len(given)).write(ids))
        return given, files


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
                    f"{ranks}: line {number}: {merge!r} needs the token {token!r}, which {table} lacks: the two files "
                    "do not belong together; take both from the same model"
                )
        made.add(left + right)
    for token in tokens:
        if not byte_of_character().keys() >= set(token):
            raise ConfigError(f"{table}: its token {token!r} has a character that stands for no byte; not GPT-2's kind")
        if token not in made and not (token.startswith("<") and token.endswith(">")):
            raise ConfigError(
                f"{table}: no merge of {ranks} makes its token {token!r}: the two files do not belong together; take "
                "both from the same model"
            )
    return tokens, list(merges.values())


def _read_tokens(path: Path, name: str) -> list[str]:
    """The tokens by id."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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
            raise ConfigError(f"{name}: line {number} is no merge, two tokens with one space between them: {line!r}")
        if line in seen:
            raise ConfigError(f"{name}: line {number}: {line!r} is in line {seen[line]} already; leave one out")
        merges[number], seen[line] = line, number
    return merges
