"""Generated text on the terminal, while it grows."""

import os

from txl.data.vocabulary import Vocabulary, WordVocabulary
from txl.system.console import printable


def to_text(vocab: Vocabulary, ids: list[int]) -> str:
    """Token ids as one would type them: words without the spaces that tokenization put between them."""
    if not isinstance(vocab, WordVocabulary):
        return vocab.decode(ids)
    from txl.data.moses import detokenize

    if vocab.sentences and ids and ids[0] == vocab.eos_id:  # the near side of the first sentence
        ids = ids[1:]
    lines = vocab.decode(ids).split("\n")
    return "\n".join(detokenize(line.split()) for line in lines)


LONGEST = 64  # tokens that are put together again for every further one


class TextStream:
    """Prints a text while it grows. What the next token may still change (a space, half a character) waits for it."""

    def __init__(self, vocab: Vocabulary, prompt: list[int]):
        self.vocab, self.line, self.shown = vocab, list(prompt), ""
        self.is_word = isinstance(vocab, WordVocabulary)
        self.text = to_text(vocab, self.line)
        self._show(self.text)

    def add(self, token: int) -> None:
        self.line.append(token)
        before, self.text = self.text, to_text(self.vocab, self.line)
        if self.is_word and token != self.vocab.eos_id:
            self._show(os.path.commonprefix([before, self.text]))
        elif not self.text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(self.text)
        self._forget(token)

    def _forget(self, token: int) -> None:
        """Only the end of the text is put together again for the next token: its cost does not grow."""
        if token == self.vocab.eos_id or (not self.is_word and len(self.line) > LONGEST and self.shown == self.text):
            self.line, self.text, self.shown = [], "", ""
        elif len(self.line) > LONGEST and self.is_word:
            gone, kept = self.line[: -LONGEST // 2], self.line[-LONGEST // 2 :]
            words, end = self.vocab.decode(gone).split(), to_text(self.vocab, kept)
            open_quotes = any(words.count(quote) % 2 for quote in ('"', "'"))  # the next one would be taken for theirs
            if not open_quotes and self.text.endswith(end):
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
