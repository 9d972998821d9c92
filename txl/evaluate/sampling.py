"""Text from a model, one token at a time.

Shapes: B texts, T tokens read at once, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from txl.config.geometry import Geometry
from txl.config.precision import Arithmetic
from txl.config.sampling import Sampling
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.runtimes import Memory
from txl.model.transformer import TransformerXL
from txl.system.precision import autocast

TokenModel = TransformerXL | CachedTransformerXL  # what can read a token at a time


class DrawnToken(NamedTuple):
    """A token that was written after a prompt."""

    text: int  # index of the prompt
    token: int
    log_prob: float  # nats, under the model itself: temperature 1, no token left out or penalised


@dataclass
class Continuation:
    """The tokens that a model wrote after a prompt."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)  # nats, see DrawnToken

    @property
    def log_prob(self) -> float:
        """Nats of all tokens together."""
        return sum(self.log_probs)


class TokenSampler:
    """Writes tokens after prompts, with the memory that the geometry allows."""

    def __init__(self, model: TokenModel, geometry: Geometry, precision: Arithmetic = Arithmetic.fp32):
        """Prepare to write.

        Args:
            model: the model, or its cached runtime.
            geometry: mem_len and clamp_len; a prompt is read tgt_len tokens at a time.
            precision: of the matrix products.
        """
        self.model, self.geometry, self.precision = model, geometry, precision

    @torch.no_grad()
    def draw(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generator[DrawnToken, None, None]:
        """Write `sampling.max_tokens` tokens after each prompt. The memory holds what was read before.

        All texts advance together. Each has random numbers of its own, so that no text depends on the others. The part
        of a prompt beyond the length of the shortest one is read token by token. Stop strings and stop tokens are not
        looked for here.

        Args:
            prompts: token ids; at least one token each.
            sampling: how tokens are drawn, and how many.

        Yields:
            The tokens, in the order in which they are drawn.

        Raises:
            ConfigError: if the model's probabilities are no numbers.
        """
        device, training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(len(prompts))]
        seen = [set(prompt) for prompt in prompts]
        written = [0] * len(prompts)
        shortest = min(len(prompt) for prompt in prompts)
        input = torch.tensor([prompt[:shortest] for prompt in prompts], device=device)
        memory: Memory = []
        try:
            for segment in input[:, :-1].split(self.geometry.tgt_len, dim=1) if shortest > 1 else ():
                with autocast(self.precision, device):
                    _, memory = self.model(segment, memory, self.geometry)
            input, step = input[:, -1:], replace(self.geometry, ext_len=0)
            for position in range(shortest, max(len(prompt) for prompt in prompts) + sampling.max_tokens):
                with autocast(self.precision, device):
                    hidden, memory = self.model(input, memory, step)
                    log_prob = self.model.log_prob(hidden[:, -1])
                _check_numbers(log_prob)
                chosen = []
                for i, prompt in enumerate(prompts):
                    if position < len(prompt):
                        chosen.append(prompt[position])
                        continue
                    chosen.append(_draw(log_prob[i], sampling, seen[i], generators[i]))
                    seen[i].add(chosen[i])
                    if written[i] < sampling.max_tokens:
                        written[i] += 1
                        yield DrawnToken(i, chosen[i], log_prob[i, chosen[i]].item())
                input = torch.tensor(chosen, device=device)[:, None]
        finally:
            self.model.train(training)

    def continue_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: Callable[[int, int], bool] | None = None,
    ) -> list[Continuation]:
        """As `draw`, collected by prompt.

        Args:
            prompts: token ids; at least one token each.
            sampling: how tokens are drawn, and how many.
            on_token: on_token(i, token) is called for every token after prompt i; it returns whether that text goes on.

        Returns:
            A continuation for every prompt, with the token that ended it.
        """
        texts, going_on = [Continuation() for _ in prompts], set(range(len(prompts)))
        with contextlib.closing(self.draw(prompts, sampling)) as drawn:
            for i, token, log_prob in drawn:
                if i in going_on:
                    texts[i].tokens.append(token)
                    texts[i].log_probs.append(log_prob)
                    if on_token is not None and not on_token(i, token):
                        going_on.remove(i)
                if not going_on:
                    break
        return texts


def _check_numbers(log_prob: Tensor) -> None:
    if log_prob.isnan().any():
        raise ConfigError(
            "the model's probabilities are no numbers (NaN): its training diverged, or it overflows in this precision; "
            "use an earlier checkpoint, or precision=fp32"
        )


def _draw(log_prob: Tensor, sampling: Sampling, seen: set[int], generator: torch.Generator) -> int:
    """One token from log-probabilities [V]. `seen`: tokens of the text so far."""
    if sampling.repetition_penalty != 1:
        index = torch.tensor(sorted(seen), device=log_prob.device)
        log_prob = log_prob.index_copy(0, index, log_prob[index] * sampling.repetition_penalty)
    probability = sampling_probabilities(log_prob, sampling).cpu()
    return int(torch.multinomial(probability, 1, generator=generator).item())


def sampling_probabilities(log_prob: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [V] that a token is drawn from: tempered, without the tokens left out, summing to 1."""
    if sampling.temperature == 0:
        return torch.zeros_like(log_prob).index_fill(0, log_prob.argmax(), 1.0)
    score = log_prob / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(score):
        score = score.masked_fill(score < score.topk(sampling.top_k).values[-1], -math.inf)
    probability = score.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = probability.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        probability = probability.index_fill(0, order[before >= sampling.top_p], 0.0)
        probability /= probability.sum()
    if sampling.min_p is not None:
        probability = probability.masked_fill(probability < sampling.min_p * probability.max(), 0.0)
        probability /= probability.sum()
    return probability
