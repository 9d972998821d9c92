"""What `evaluate.py task=generate` does: prompts read, texts written to the terminal as they come into being."""

import json
import os
import sys
from pathlib import Path

import torch

from txl.choices import Runtime
from txl.config import EvaluateConfig
from txl.console import printable
from txl.errors import ConfigError
from txl.evaluator import choose_runtime, geometry_of, load, typed_tokens
from txl.generation import Continuation, Sampling, continue_texts
from txl.inference import CachedTransformerXL
from txl.precision import autocast, parameter_dtype, set_matmul_precision
from txl.vocab import Vocabulary, WordVocabulary


def write(config: EvaluateConfig, device: torch.device) -> int:
    """Go on from every prompt; returns the exit code. One text streams, several are printed when they are done."""
    set_matmul_precision(config.precision.name)
    dtype = parameter_dtype(config.precision.name)
    loaded = load(config.checkpoint, device, dtype, config.config_file, config.data_path)
    geometry, _ = geometry_of(config, loaded.evaluation)
    model = loaded.model
    if choose_runtime(config.runtime, model, geometry) is Runtime.cached:
        model = CachedTransformerXL(model, geometry)
    prompts = read_prompts(config)
    read = [typed_tokens(prompt, loaded.vocab, end_line=False) for prompt in prompts]
    for (_, unknown), prompt in zip(read, prompts, strict=True):
        if unknown:
            print(f"warning: {unknown} unknown tokens in the prompt {prompt!r}", file=sys.stderr)
    ids = [tokens.tolist() for tokens, _ in read]
    stream = TextStream(loaded.vocab, ids[0]) if len(prompts) == 1 else None
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    with autocast(config.precision.name, device):
        texts = continue_texts(
            model, ids, config.max_tokens, geometry, sampling, on_token=stream and (lambda _, token: stream.add(token))
        )
    if stream:
        stream.end()
    else:
        for prompt, tokens, text in zip(prompts, ids, texts, strict=True):
            print(f"--- {printable(prompt)}\n{printable(to_text(loaded.vocab, tokens + text.tokens))}")
    if config.json:
        written = [record(loaded.vocab, *each) for each in zip(prompts, ids, texts, strict=True)]
        Path(config.json).write_text(json.dumps(written, indent=1) + "\n")
    return 0


def read_prompts(config: EvaluateConfig) -> list[str]:
    if config.prompts is None:
        return [sys.stdin.read() if config.prompt == "-" else config.prompt]
    try:
        lines = Path(config.prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts={config.prompts} cannot be read ({error}); give a text file") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"prompts={config.prompts} holds no prompt; write one per line")
    return found


def record(vocab: Vocabulary, prompt: str, ids: list[int], text: Continuation) -> dict:
    whole = to_text(vocab, ids + text.tokens)
    return {"prompt": prompt, "text": whole, "prompt_tokens": ids, "tokens": text.tokens, "log_prob": text.log_prob}


def to_text(vocab: Vocabulary, ids: list[int]) -> str:
    """Token ids as one would type them: words without the spaces that tokenization put between them."""
    if not isinstance(vocab, WordVocabulary):
        return vocab.decode(ids)
    from txl.moses import detokenize

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
