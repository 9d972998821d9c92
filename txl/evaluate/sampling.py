"""Text from a model, one token at a time.

Shapes: B texts, T tokens read at once, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.runtimes import Memory
from txl.model.transformer import TransformerXL


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. top_k and top_p leave unlikely tokens out."""

    temperature: float = 1.0
    top_k: int | None = None  # draw from the k likeliest tokens
    top_p: float | None = None  # draw from the likeliest tokens that together have this probability
    seed: int = 0


@dataclass
class Continuation:
    """The tokens that a model wrote after a prompt."""

    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0  # nats, of these tokens under the model itself: temperature 1, no token left out


@torch.no_grad()
def continue_prompts(
    model: TransformerXL | CachedTransformerXL,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    geometry: Geometry,
    sampling: Sampling,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Continuation]:
    """Write `max_tokens` tokens after each prompt. The memory holds what was read before.

    All texts advance together. Each has random numbers of its own, so that no text depends on the others. The part of
    a prompt beyond the length of the shortest one is read token by token.

    Args:
        model: the model, or its cached runtime.
        prompts: token ids; at least one token each.
        max_tokens: how many tokens to write.
        geometry: mem_len and clamp_len; a prompt is read tgt_len tokens at a time.
        sampling: how tokens are drawn.
        on_token: on_token(i, token) is called for every token written after prompt i.

    Returns:
        A continuation for every prompt.
    """
    device, B = next(model.parameters()).device, len(prompts)
    training = model.training
    model.eval()
    generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(B)]
    texts = [Continuation() for _ in prompts]
    shortest = min(len(prompt) for prompt in prompts)
    input = torch.tensor([prompt[:shortest] for prompt in prompts], device=device)
    memory: Memory = []
    for segment in input[:, :-1].split(geometry.tgt_len, dim=1) if shortest > 1 else ():
        _, memory = model(segment, memory, geometry)
    input, step = input[:, -1:], replace(geometry, ext_len=0)
    for position in range(shortest, max(len(prompt) for prompt in prompts) + max_tokens):
        hidden, memory = model(input, memory, step)
        log_prob = model.log_prob(hidden[:, -1])
        chosen = []
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if position < len(prompt):
                chosen.append(prompt[position])
                continue
            chosen.append(_draw_token(log_prob[i], sampling, generators[i]))
            if len(text.tokens) < max_tokens:
                text.tokens.append(chosen[i])
                text.log_prob += log_prob[i, chosen[i]].item()
                if on_token:
                    on_token(i, chosen[i])
        input = torch.tensor(chosen, device=device)[:, None]
    model.train(training)
    return texts


def _draw_token(log_prob: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from log-probabilities [V]."""
    probability = sampling_probabilities(log_prob, sampling).cpu()
    return int(torch.multinomial(probability, 1, generator=generator).item())


def sampling_probabilities(log_prob: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [V] that a token is drawn from: tempered, without the unlikely tokens, summing to 1."""
    score = log_prob / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(score):
        score = score.masked_fill(score < score.topk(sampling.top_k).values[-1], -math.inf)
    probability = score.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = probability.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        probability = probability.index_fill(0, order[before >= sampling.top_p], 0.0)
        probability /= probability.sum()
    return probability
