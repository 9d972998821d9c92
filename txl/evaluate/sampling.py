"""Text from a model, one token at a time.

Shapes: B texts, T tokens read at once, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from txl.config.geometry import Geometry


@dataclass(frozen=True)
class Sampling:
    """Which of the likely tokens is taken. top_k and top_p leave the unlikely ones out."""

    temperature: float = 1.0
    top_k: int | None = None  # choose among the k likeliest
    top_p: float | None = None  # choose among the likeliest that together reach this probability
    seed: int = 0


@dataclass
class Continuation:
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0  # nats, of the tokens under the model itself: at temperature 1, nothing left out


@torch.no_grad()
def continue_texts(
    model,
    prompts: list[list[int]],
    max_tokens: int,
    geometry: Geometry,
    sampling: Sampling,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Continuation]:
    """Go on from each prompt (at least one token) by `max_tokens` tokens; the memory holds what was read before.

    model: a TransformerXL or its cached runtime. geometry: mem_len, clamp_len; a prompt is read tgt_len tokens at a
    time. All texts advance together, each with its own random numbers, so that none depends on its neighbours; the
    part of a prompt beyond the shortest one is read token by token. on_token(text, token) hears of every token.
    """
    device, B = next(model.parameters()).device, len(prompts)
    training = model.training
    model.eval()
    generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(B)]
    texts = [Continuation() for _ in prompts]
    shortest = min(len(prompt) for prompt in prompts)
    input, mems = torch.tensor([prompt[:shortest] for prompt in prompts], device=device), []
    for segment in input[:, :-1].split(geometry.tgt_len, dim=1) if shortest > 1 else ():
        _, mems = model(segment, mems, geometry)
    input, step = input[:, -1:], replace(geometry, ext_len=0)
    for position in range(shortest, max(len(prompt) for prompt in prompts) + max_tokens):
        hidden, mems = model(input, mems, step)
        log_prob = model.log_prob(hidden[:, -1])
        chosen = []
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if position < len(prompt):
                chosen.append(prompt[position])
                continue
            chosen.append(sample(log_prob[i], sampling, generators[i]))
            if len(text.tokens) < max_tokens:
                text.tokens.append(chosen[i])
                text.log_prob += log_prob[i, chosen[i]].item()
                if on_token:
                    on_token(i, chosen[i])
        input = torch.tensor(chosen, device=device)[:, None]
    model.train(training)
    return texts


def sample(log_prob: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from log-probabilities [V]."""
    probability = likely(log_prob, sampling).cpu()
    return torch.multinomial(probability, 1, generator=generator).item()


def likely(log_prob: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [V] that are sampled from: tempered, without the tail, summing to 1."""
    score = log_prob / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(score):
        score = score.masked_fill(score < score.topk(sampling.top_k).values[-1], -math.inf)
    probability = score.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        falling, order = probability.sort(descending=True)
        before = falling.cumsum(-1) - falling
        probability = probability.index_fill(0, order[before >= sampling.top_p], 0.0)
        probability /= probability.sum()
    return probability


def generate(
    model,
    prompt: list[int],
    max_tokens: int,
    mem_len: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[int]:
    """Go on from one prompt."""
    geometry = Geometry(tgt_len=max(1, len(prompt)), mem_len=mem_len, same_length=mem_len > 0)
    sampling = Sampling(temperature, top_k, seed=seed)
    return continue_texts(model, [prompt], max_tokens, geometry, sampling)[0].tokens
