"""`txl generate`: continue prompts; one text is written to the terminal while it grows."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from txl.config.output_files import writing_output
from txl.config.schema import EvaluateConfig
from txl.errors import ConfigError
from txl.evaluate.trained_model import GeneratedText, open_model
from txl.evaluate.typed_text import count_unknown, read_text_argument, unescape
from txl.files import write_json
from txl.system.console import printable


def generate_texts(config: EvaluateConfig, device: torch.device) -> int:
    """Continue every prompt; returns the exit code. One text is printed while it grows, several when they are done."""
    model = open_model(config, device)
    prompts = read_prompts(config)
    for prompt in prompts:
        if unknown := count_unknown(model.vocab.encode_typed(prompt, end_line=False), model.vocab):
            print(f"warning: {unknown} unknown tokens in the prompt {prompt!r}", file=sys.stderr)
    sampling = replace(config, stop=[unescape(text) for text in config.stop])
    on_piece: Callable[[int, str], None] | None = None
    if len(prompts) == 1:
        on_piece = _print_piece
    texts = model.continue_texts(prompts, sampling, on_piece)
    if len(prompts) == 1:
        print(flush=True)
    else:
        for text in texts:
            print(f"--- {printable(text.prompt)}\n{printable(text.text)}")
    if config.json:
        with writing_output("json", config.json):
            write_json(Path(config.json), [_text_record(text) for text in texts], indent=1)
    return 0


def _print_piece(text: int, piece: str) -> None:
    if piece:
        print(printable(piece), end="", flush=True)


def read_prompts(config: EvaluateConfig) -> list[str]:
    """The prompt of `prompt=`, or the lines of the file `prompts=`. Raises ConfigError if there is none."""
    if config.prompts is None:
        return [read_text_argument("prompt", str(config.prompt))]
    try:
        lines = Path(config.prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts={config.prompts} cannot be read ({error}); give a text file") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"prompts={config.prompts} holds no prompt; write one per line")
    return found


def _text_record(text: GeneratedText) -> dict[str, Any]:
    """One entry of the JSON file."""
    written = text.continuation
    return {
        "prompt": text.prompt,
        "text": text.text,
        "prompt_tokens": text.prompt_tokens,
        "tokens": written.tokens,
        "log_prob": written.log_prob,
        "log_probs": written.log_probs,
    }
