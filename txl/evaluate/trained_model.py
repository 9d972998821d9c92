"""A trained model with its vocabulary: it scores texts and continues them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from txl.config.data import Metric
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.config.precision import Arithmetic
from txl.config.schema import EvaluateConfig, Runtime
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.load_model import LoadedModel, evaluation_geometry, load_trained_model
from txl.evaluate.runtimes import choose_runtime
from txl.evaluate.sampling import Continuation, Sampling, TokenModel, continue_prompts, draw_tokens
from txl.evaluate.score import Score, TokenScorer
from txl.evaluate.text_stream import GrowingText
from txl.evaluate.typed_text import count_unknown, token_ids
from txl.system.precision import parameter_dtype, set_matmul_precision


@dataclass(frozen=True)
class Stops:
    """Where generated texts end before `max_tokens`."""

    strings: Sequence[str] = ()  # a text ends before the first of these
    tokens: Sequence[str] = ()  # a text ends before the first of these tokens; `eos`: the vocabulary's end token


@dataclass(frozen=True)
class GeneratedText:
    """A text that a model wrote after a prompt."""

    prompt: str
    prompt_tokens: list[int]
    text: str  # with the prompt
    continuation: Continuation  # with the token that ended it


class Model:
    """A trained model with its vocabulary. `txl.load` makes one.

    Attributes:
        vocab: the vocabulary; `len(model.vocab)` is its size.
        config: the architecture.
        geometry: the lengths that texts are read with.
        metric: the score that the data set is reported with, ppl or bpc.
        checkpoint: the folder or file that the weights are from.
        device: where the model is.
        precision: of its matrix products.
        runtime: how it is run, eager or cached.
    """

    vocab: Vocabulary
    config: ModelConfig
    geometry: Geometry
    metric: Metric
    checkpoint: Path
    device: torch.device
    precision: Arithmetic
    runtime: Runtime

    def __init__(self, loaded: LoadedModel, geometry: Geometry, runtime: Runtime, precision: Arithmetic):
        """Make a model ready to use.

        Args:
            loaded: the weights and what belongs to them.
            geometry: the lengths that texts are read with.
            runtime: auto, eager or cached.
            precision: of the matrix products.
        """
        self.vocab, self.config, self.metric = loaded.vocab, loaded.architecture, loaded.data.metric
        self.checkpoint, self.geometry, self.precision = loaded.folder, geometry, precision
        self.device = next(loaded.model.parameters()).device
        self.runtime = choose_runtime(runtime, loaded.model, geometry)
        if self.runtime not in (Runtime.eager, Runtime.cached):
            raise ConfigError(f"runtime={runtime.name} reads whole segments; use runtime=auto, eager or cached")
        self._model: TokenModel = loaded.model
        if self.runtime is Runtime.cached:
            self._model = CachedTransformerXL(loaded.model, geometry)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self._model.parameters())
        known = f"{len(self.vocab):,} {self.vocab.noun}"
        return f"<txl.Model {self.config.name}: {size:,} parameters, {known}, {self.geometry}>"

    # ------------------------------------------------------------------ scores

    @overload
    def score(self, text: str, *, context: str = ..., token_losses: bool = ...) -> Score: ...

    @overload
    def score(self, text: list[str], *, context: str = ..., token_losses: bool = ...) -> list[Score]: ...

    def score(self, text: str | list[str], *, context: str = "", token_losses: bool = False) -> Score | list[Score]:
        """How likely a text is, or each of several texts.

        Texts are tokenized as typed text, and the last line is complete. Several texts are read together, which gives
        the same numbers sooner.

        Args:
            text: a text, or several.
            context: text before each of them. It is read once. Without it the first token of a text is given and not
                predicted.
            token_losses: also keep the loss of every token.

        Returns:
            The score of the text, or a list of scores.
        """
        texts = [text] if isinstance(text, str) else text
        scores = self.score_ids([self.encode(one) for one in texts], self.encode_context(context), token_losses)
        return scores[0] if isinstance(text, str) else scores

    def score_ids(
        self, ids: Sequence[Sequence[int] | np.ndarray], context: Sequence[int] = (), token_losses: bool = False
    ) -> list[Score]:
        """As `score`, for texts that are token ids already.

        Args:
            ids: the tokens of each text.
            context: tokens before each text.
            token_losses: also keep the loss of every token.

        Returns:
            The scores. Raises ConfigError for ids outside of the vocabulary.
        """
        arrays = [self._checked(one) for one in ids]
        losses = TokenScorer(self._model, self.geometry, self.precision).score(arrays, context)
        return [self._score(*pair, token_losses) for pair in zip(arrays, losses, strict=True)]

    def score_in_sequence(
        self, ids: Sequence[Sequence[int] | np.ndarray], context: Sequence[int] = (), token_losses: bool = False
    ) -> Iterator[Score]:
        """As `score_ids`, but the context of each text is `context` and all texts before it.

        Args:
            ids: the tokens of each text, in their order.
            context: tokens before the first text.
            token_losses: also keep the loss of every token.

        Yields:
            The score of each text, as soon as it is known.
        """
        arrays = [self._checked(one) for one in ids]
        scorer = TokenScorer(self._model, self.geometry, self.precision)
        for array, losses in zip(arrays, scorer.score_in_sequence(arrays, context), strict=True):
            yield self._score(array, losses, token_losses)

    def encode(self, text: str) -> np.ndarray:
        """[n] int64 ids of a typed text whose last line is complete."""
        return self.vocab.encode_typed(text, end_line=True)

    def encode_context(self, text: str) -> list[int]:
        """Ids of a typed text that another text follows: its last line is complete only if it ends with a newline."""
        return [] if not text else self.vocab.encode_typed(text, end_line=text.endswith("\n")).tolist()

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids, np.int64)
        if array.size and not 0 <= array.min() <= array.max() < len(self.vocab):
            wrong = next(int(i) for i in array if not 0 <= i < len(self.vocab))
            raise ConfigError(f"the id {wrong} is not in the vocabulary, whose ids are 0 to {len(self.vocab) - 1}")
        return array

    def _score(self, ids: np.ndarray, losses: np.ndarray, with_tokens: bool) -> Score:
        tokens = None
        if with_tokens:
            names = [self.vocab.decode([token]) for token in ids[len(ids) - len(losses) :].tolist()]
            tokens = list(zip(names, losses.tolist(), strict=True))
        return Score(float(losses.sum()), len(losses), count_unknown(ids, self.vocab), tokens)

    # ------------------------------------------------------------------ generation

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        stop: str | Sequence[str] = ...,
        stop_tokens: Sequence[str] = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
        include_prompt: bool = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int = ...,
        *,
        stream: Literal[True],
        stop: str | Sequence[str] = ...,
        stop_tokens: Sequence[str] = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
        include_prompt: bool = ...,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str,
        max_tokens: int = 200,
        *,
        stream: bool = False,
        stop: str | Sequence[str] = (),
        stop_tokens: Sequence[str] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        include_prompt: bool = True,
    ) -> str | Iterator[str]:
        """Continue a text.

        Args:
            prompt: how the text begins.
            max_tokens: how many tokens to write.
            stream: return the text piece by piece while it grows.
            stop: the text ends before this string, or before the first of these.
            stop_tokens: the text ends before the first of these tokens; `eos` is the vocabulary's end token.
            temperature: below 1 likely tokens become likelier; 0 takes the likeliest token every time.
            top_k: draw from the k likeliest tokens.
            top_p: draw from the likeliest tokens that together have this probability.
            min_p: draw from tokens that are at least this times as likely as the likeliest.
            repetition_penalty: above 1 makes tokens that stand in the text already less likely.
            seed: of the random numbers; the same seed gives the same text.
            include_prompt: begin with the prompt.

        Returns:
            The text; with `stream` an iterator over its pieces.

        Raises:
            ConfigError: for an empty prompt, a prompt or stop token outside of the vocabulary, or an option outside of
                its range.
        """
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        sampling.check()
        stops = Stops([stop] if isinstance(stop, str) else stop, stop_tokens)
        pieces = self._pieces(self._encode_prompt(prompt), max_tokens, sampling, stops, include_prompt)
        return pieces if stream else "".join(pieces)

    def _pieces(
        self, prompt: list[int], max_tokens: int, sampling: Sampling, stops: Stops, include_prompt: bool
    ) -> Iterator[str]:
        text = self._grow(prompt, stops)

        def pieces() -> Iterator[str]:
            if include_prompt:
                yield text.prompt_text
            arguments = (self._model, [prompt], max_tokens, self.geometry, sampling, self.precision)
            with closing(draw_tokens(*arguments)) as drawn:
                for _, token, _ in drawn:
                    if piece := text.add(token):
                        yield piece
                    if text.ended:
                        break
            if piece := text.finish():
                yield piece

        return pieces()

    def continue_texts(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        sampling: Sampling,
        stops: Stops,
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[GeneratedText]:
        """Continue several texts together, as `generate` would each of them.

        Args:
            prompts: how the texts begin.
            max_tokens: how many tokens to write for each.
            sampling: how tokens are drawn; text i uses the random numbers of seed + i.
            stops: where texts end before that.
            on_piece: on_piece(i, piece) is called for every piece of text i, beginning with its prompt.

        Returns:
            The texts with their tokens and log-probabilities.
        """
        ids = [self._encode_prompt(prompt) for prompt in prompts]
        texts = [self._grow(prompt, stops) for prompt in ids]
        show = on_piece or (lambda i, piece: None)
        for i, text in enumerate(texts):
            show(i, text.prompt_text)

        def on_token(i: int, token: int) -> bool:
            show(i, texts[i].add(token))
            return not texts[i].ended

        written = continue_prompts(self._model, ids, max_tokens, self.geometry, sampling, self.precision, on_token)
        for i, text in enumerate(texts):
            show(i, text.finish())
        return [
            GeneratedText(prompt, tokens, text.prompt_text + text.text, continuation)
            for prompt, tokens, text, continuation in zip(prompts, ids, texts, written, strict=True)
        ]

    def _encode_prompt(self, prompt: str) -> list[int]:
        ids: list[int] = self.vocab.encode_typed(prompt, end_line=False).tolist()
        if not ids:
            raise ConfigError("the prompt is empty: write how the text begins")
        return ids

    def _grow(self, prompt: list[int], stops: Stops) -> GrowingText:
        return GrowingText(self.vocab, prompt, stops.strings, token_ids(stops.tokens, self.vocab))


def open_model(config: EvaluateConfig, device: torch.device) -> Model:
    """The model that a configuration names, with its lengths, precision and runtime."""
    precision = config.precision.name
    set_matmul_precision(precision)
    loaded = load_trained_model(
        config.checkpoint, device, parameter_dtype(precision), config.config_file, config.data_path
    )
    geometry, _ = evaluation_geometry(config, loaded)
    return Model(loaded, geometry, config.runtime, precision)
