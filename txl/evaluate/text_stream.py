"""Generated tokens as pieces of text, as soon as no later token can change them, up to a stop string."""

import os
from collections.abc import Sequence

from txl.data.vocabulary import Vocabulary

LONGEST = 64  # tokens that are decoded again for every further one


class TextStream:
    """Turns tokens into pieces of typed text.

    The pieces joined are the text of all tokens. What the next token may still change (a space before a word, half a
    character) is held back until it is certain.
    """

    def __init__(self, vocab: Vocabulary, prompt: Sequence[int]):
        """`prompt`: the tokens before the first one; `prompt_text` is their text."""
        self._vocab, self._tokens = vocab, list(prompt)
        self._text = self._given = vocab.to_typed_text(self._tokens)  # of the tokens; the part that was returned
        self.prompt_text = self._text

    def add(self, token: int) -> str:
        """The piece of text that becomes certain with the next token; often empty."""
        self._tokens.append(token)
        before, self._text = self._text, self._vocab.to_typed_text(self._tokens)
        certain = self._text
        if self._vocab.joins_words and token != self._vocab.eos_id:
            certain = os.path.commonprefix([before, self._text])
        piece = self._advance(certain.rstrip("\N{REPLACEMENT CHARACTER}"))  # the next token may complete a character
        self._forget(token)
        return piece

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        return self._advance(self._text)

    def _advance(self, text: str) -> str:
        """What `text` has beyond the part that was returned. That part is never taken back."""
        piece = text[len(self._given) :]
        if piece:
            self._given = text
        return piece

    def _forget(self, token: int) -> None:
        """Keep only the end of the text, so that the cost of a token does not grow with the text."""
        if token == self._vocab.eos_id and self._text.endswith("\n"):
            self._tokens, self._text, self._given = [], "", ""
        elif len(self._tokens) > LONGEST:
            gone, kept = self._tokens[: -LONGEST // 2], self._tokens[-LONGEST // 2 :]
            end = self._vocab.to_typed_text(kept)
            if self._vocab.can_forget(gone) and self._text.endswith(end):
                self._given = self._given[len(self._text) - len(end) :]
                self._tokens, self._text = kept, end


class StopFilter:
    """Passes text on until one of the stop strings begins. The stop string itself is not passed on."""

    def __init__(self, stop: Sequence[str]):
        self._stop, self._held = [text for text in stop if text], ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """The text that can be passed on after this piece. What may be the start of a stop string is held back."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [text.index(stop) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        end = len(text) - max(lengths, default=0)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


class GrowingText:
    """The text after a prompt while it grows: pieces of certain text up to a stop string or stop token."""

    def __init__(
        self, vocab: Vocabulary, prompt: Sequence[int], stop: Sequence[str] = (), stop_ids: Sequence[int] = ()
    ):
        """Start with the prompt.

        Args:
            vocab: turns tokens into text.
            prompt: tokens before the text.
            stop: the text ends before the first of these strings.
            stop_ids: the text ends before the first of these tokens.
        """
        self._stream, self._filter, self._stop_ids = TextStream(vocab, prompt), StopFilter(stop), set(stop_ids)
        self.prompt_text = self._stream.prompt_text
        self.text = ""  # what was returned so far, without the prompt
        self.ended = False

    def add(self, token: int) -> str:
        """The piece of text that becomes certain with the next token."""
        if self.ended:
            return ""
        if token in self._stop_ids:
            return self.finish()
        return self._returned(self._filter.add(self._stream.add(token)))

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        if self.ended:
            return ""
        piece = self._returned(self._filter.add(self._stream.finish()))
        piece += "" if self.ended else self._returned(self._filter.finish())
        self.ended = True
        return piece

    def _returned(self, piece: str) -> str:
        self.text += piece
        self.ended = self.ended or self._filter.stopped
        return piece
