"""`evaluate.py task=generate`: read prompts, write texts after them to the terminal while they grow."""

import sys
from pathlib import Path
from typing import Any

import torch

from txl.config.schema import EvaluateConfig, Runtime
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.load_model import evaluation_geometry, load_trained_model
from txl.evaluate.runtimes import choose_runtime
from txl.evaluate.sampling import Continuation, Sampling, continue_prompts
from txl.evaluate.text_stream import TextStream
from txl.evaluate.typed_text import typed_tokens
from txl.files import write_json
from txl.model.transformer import TransformerXL
from txl.system.console import printable
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision


def generate_texts(config: EvaluateConfig, device: torch.device) -> int:
    """Continue every prompt; returns the exit code. One text is printed while it grows, several when they are done."""
    set_matmul_precision(config.precision.name)
    dtype = parameter_dtype(config.precision.name)
    loaded = load_trained_model(config.checkpoint, device, dtype, config.config_file, config.data_path)
    geometry, _ = evaluation_geometry(config, loaded)
    model: TransformerXL | CachedTransformerXL = loaded.model
    if choose_runtime(config.runtime, loaded.model, geometry) is Runtime.cached:
        model = CachedTransformerXL(loaded.model, geometry)
    prompts = read_prompts(config)
    encoded = [typed_tokens(prompt, loaded.vocab, end_line=False) for prompt in prompts]
    for (_, unknown), prompt in zip(encoded, prompts, strict=True):
        if unknown:
            print(f"warning: {unknown} unknown tokens in the prompt {prompt!r}", file=sys.stderr)
    ids = [tokens.tolist() for tokens, _ in encoded]
    stream = TextStream(loaded.vocab, ids[0]) if len(prompts) == 1 else None
    on_token = None if stream is None else lambda _, token: stream.add(token)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    with autocast(config.precision.name, device):
        texts = continue_prompts(model, ids, config.max_tokens, geometry, sampling, on_token)
    if stream is not None:
        stream.end()
    else:
        for prompt, tokens, text in zip(prompts, ids, texts, strict=True):
            print(f"--- {printable(prompt)}\n{printable(loaded.vocab.to_typed_text(tokens + text.tokens))}")
    if config.json:
        records = [_text_record(loaded.vocab, *each) for each in zip(prompts, ids, texts, strict=True)]
        write_json(Path(config.json), records, indent=1)
    return 0


def read_prompts(config: EvaluateConfig) -> list[str]:
    """The prompt of `prompt=`, or the lines of the file `prompts=`. Raises ConfigError if the file holds none."""
    if config.prompts is None:
        return [sys.stdin.read() if config.prompt == "-" else str(config.prompt)]
    try:
        lines = Path(config.prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts={config.prompts} cannot be read ({error}); give a text file") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"prompts={config.prompts} holds no prompt; write one per line")
    return found


def _text_record(vocab: Vocabulary, prompt: str, ids: list[int], text: Continuation) -> dict[str, Any]:
    """One entry of the JSON file."""
    whole = vocab.to_typed_text(ids + text.tokens)
    return {"prompt": prompt, "text": whole, "prompt_tokens": ids, "tokens": text.tokens, "log_prob": text.log_prob}
