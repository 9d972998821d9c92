"""What `evaluate.py task=generate` does: prompts read, texts written to the terminal as they come into being."""

import sys
from pathlib import Path

import torch

from txl.config.schema import EvaluateConfig, Runtime
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.load_model import choose_runtime, geometry_of, load
from txl.evaluate.sampling import Continuation, Sampling, continue_texts
from txl.evaluate.text_stream import TextStream
from txl.evaluate.typed_text import typed_tokens
from txl.files import write_json
from txl.system.console import printable
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision


def write(config: EvaluateConfig, device: torch.device) -> int:
    """Go on from every prompt; returns the exit code. One text streams, several are printed when they are done."""
    set_matmul_precision(config.precision.name)
    dtype = parameter_dtype(config.precision.name)
    loaded = load(config.checkpoint, device, dtype, config.config_file, config.data_path)
    geometry, _ = geometry_of(config, loaded)
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
            print(f"--- {printable(prompt)}\n{printable(loaded.vocab.to_typed_text(tokens + text.tokens))}")
    if config.json:
        written = [record(loaded.vocab, *each) for each in zip(prompts, ids, texts, strict=True)]
        write_json(Path(config.json), written, indent=1)
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
    whole = vocab.to_typed_text(ids + text.tokens)
    return {"prompt": prompt, "text": whole, "prompt_tokens": ids, "tokens": text.tokens, "log_prob": text.log_prob}
