"""Generated text on the terminal, while it grows."""

import os

from txl.data.vocabulary import Vocabulary
from txl.system.console import printable

LONGEST = 64  # tokens that are put together again for every further one


class TextStream:
    """Prints a text while it grows. What the next token may still change (a space, half a character) waits for it."""

    def __init__(self, vocab: Vocabulary, prompt: list[int]):
        self.vocab, self.line, self.shown = vocab, list(prompt), ""
        self.text = vocab.to_typed_text(self.line)
        self._show(self.text)

    def add(self, token: int) -> None:
        self.line.append(token)
        before, self.text = self.text, self.vocab.to_typed_text(self.line)
        certain = self.text
        if self.vocab.joins_words and token != self.vocab.eos_id:
            certain = os.path.commonprefix([before, self.text])
        self._show(certain.rstrip("\N{REPLACEMENT CHARACTER}"))  # the next token may complete a character
        self._forget(token)

    def _forget(self, token: int) -> None:
        """Only the end of the text is put together again for the next token: its cost does not grow."""
        if token == self.vocab.eos_id and self.text.endswith("\n"):
            self.line, self.text, self.shown = [], "", ""
        elif len(self.line) > LONGEST:
            gone, kept = self.line[: -LONGEST // 2], self.line[-LONGEST // 2 :]
            end = self.vocab.to_typed_text(kept)
            if self.vocab.can_forget(gone) and self.text.endswith(end):
                self.shown = self.shown[len(self.text) - len(end) :]
                self.line, self.text = kept, end

    def end(self) -> None:
        self._show(self.text)
        print(flush=True)

    def _show(self, text: str) -> None:
        """What stands in the terminal cannot be taken back: the text goes on from there."""
        if len(text) > len(self.shown):
            print(printable(text[len(self.shown) :]), end="", flush=True)
            self.shown = text
