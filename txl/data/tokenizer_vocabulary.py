"""The tokens of any tokenizer.json, which the library `tokenizers` reads; nothing is downloaded.

A tokenizer.json says everything: how text is normalized and cut into words, the tokens and how they are found, the
special tokens, and how tokens become text again. Text files are encoded without what the tokenizer would add around a
text (such as [CLS]); its truncation, its padding and a random dropout of merges are switched off.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from txl.config.data import VOCAB_OPTIONS, DataConfig
from txl.data.text_blocks import SplitSpans, decode_utf8
from txl.data.token_files import TokenFile
from txl.data.verified_blocks import encode_in_blocks
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MULTIPLE = 8  # matrices of such a width are fast on a GPU


class TokenizerVocabulary(Vocabulary):
    """The tokens by id, padded to a multiple of 8 with ids that no text has.

    A special token is one id wherever a text contains it.

    Args:
        tokenizer: The content of a tokenizer.json.
        eos: The token that ends a text file; None: nothing is added.
    """

    kind = "tokenizer"
    noun = "tokens"

    def __init__(self, tokenizer: dict[str, Any], eos: str | None = None):
        self.tokenizer, self.eos = tokenizer, eos

    @cached_property
    def tokens(self) -> tuple[str | int, ...]:
        """The tokens, without the padding; an id without a token is a number."""
        model, added = self.tokenizer["model"], self.tokenizer.get("added_tokens") or []
        pieces = model["vocab"]  # Unigram: pieces with their scores in the order of the ids; otherwise {token: id}
        table = pieces.items() if isinstance(pieces, dict) else ((piece, i) for i, (piece, _) in enumerate(pieces))
        by_id = {i: token for token, i in table} | {token["id"]: token["content"] for token in added}
        return tuple(by_id.get(i, i) for i in range(max(by_id, default=-1) + 1))

    def __len__(self) -> int:
        return -(-len(self.tokens) // MULTIPLE) * MULTIPLE

    @cached_property
    def eos_id(self) -> int | None:
        """The id of `eos`."""
        return None if self.eos is None else self.tokens.index(self.eos)

    @cached_property
    def unk_id(self) -> int | None:
        """The id that the tokenizer's model has for unknown text."""
        model = self.tokenizer["model"]
        found: int | None = model.get("unk_id")
        unk = model.get("unk_token")
        return self.tokens.index(unk) if unk in self.tokens else found

    @property
    def joins_words(self) -> bool:
        """The decoder may write a token with or without a space, depending on the next one."""
        return True

    @cached_property
    def library_tokenizer(self) -> "Tokenizer":
        """The library's object."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(json.dumps(self.tokenizer))
        if self.eos is not None:
            tokenizer.add_special_tokens([self.eos])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if self.tokenizer["model"].get("dropout"):
            tokenizer.model.dropout = None
        return tokenizer

    def encode(self, text: str | bytes) -> np.ndarray:
        """[T] int64 ids. Raises ConfigError for text that is not UTF-8 or that the tokenizer cannot encode."""
        text = decode_utf8(text.encode(errors="surrogateescape") if isinstance(text, str) else text)
        return np.array(self.encode_texts([text])[0], np.int64)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text. Raises ConfigError for text that the tokenizer cannot encode."""
        try:
            return [found.ids for found in self.library_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises nothing more special
            reason = " ".join(str(error).split())
            raise ConfigError(f"data.vocab={self.kind}: the tokenizer cannot encode the text ({reason})") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are not UTF-8 are replaced by U+FFFD; padding ids give nothing."""
        known = len(self.tokens)
        text: str = self.library_tokenizer.decode([int(i) for i in ids if i < known], skip_special_tokens=False)
        return text

    def to_dict(self) -> dict[str, Any]:
        """The content of the tokenizer.json, and what `eos` is."""
        return {"kind": self.kind, "tokenizer": self.tokenizer, "eos": self.eos}

    @classmethod
    def from_files(cls, files: dict[str, Path], data: DataConfig) -> Self | None:
        """The tokenizer of data.tokenizer_file; data.eos is its eos if that is one of its tokens.

        Raises ConfigError if the file is no tokenizer.json, or if data.eos was changed and is not one of its tokens.
        """
        name = f"data.tokenizer_file={files['tokenizer_file']}"
        try:
            content = json.loads(files["tokenizer_file"].read_text(encoding="utf-8"))
            vocabulary = cls(content)
            assert vocabulary.tokens and vocabulary.library_tokenizer, "it has no tokens"
        except Exception as error:  # it is not JSON, or another JSON; the library raises nothing more special
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
            remedy = "write one with the library tokenizers: tokenizer.save(FILE)"
            raise ConfigError(f"{name} is no tokenizer.json ({reason}); {remedy}") from None
        if data.eos in vocabulary.tokens:
            return cls(content, data.eos)
        if data.eos != VOCAB_OPTIONS["eos"]:
            raise ConfigError(f"data.eos={data.eos} is not among the {len(vocabulary.tokens):,} tokens of {name}")
        return vocabulary

    @classmethod
    def encode_splits(
        cls, spans: SplitSpans, data: DataConfig, folder: Path, given: Vocabulary | None
    ) -> tuple[Vocabulary, list[TokenFile]]:
        """Encode all splits with the given vocabulary (see `Vocabulary.encode_splits`); every file ends with `eos`."""
        assert isinstance(given, cls), f"data.vocab={cls.kind} always comes from files"
        ends: list[np.ndarray] = [] if given.eos_id is None else [np.array([given.eos_id])]
        files = []
        for split, parts in spans.items():
            ids = (ids for span in parts for ids in chain(encode_in_blocks(span, given.encode_texts), ends))
            files.append(TokenFile(folder, split, len(given), given.unk_id).write(ids))
        return given, files
