"""A trained model with its vocabulary: it scores texts and continues them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack, cast, overload

import numpy as np
import torch

from txl.config.bounds import check_bounds
from txl.config.data import Metric
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.config.precision import Arithmetic
from txl.config.sampling import Sampling, SamplingKeywords
from txl.config.schema import EvaluateConfig, Runtime
from txl.data.vocabulary import Vocabulary
from txl.errors import ConfigError
from txl.evaluate.fixed_weights import with_fixed_weights
from txl.evaluate.kv_cache import CachedTransformerXL
from txl.evaluate.load_model import LoadedModel, check_finite_weights, evaluation_geometry, load_trained_model
from txl.evaluate.runtimes import choose_runtime
from txl.evaluate.sampling import Continuation, TokenModel, TokenSampler
from txl.evaluate.score import Score, TokenScorer
from txl.evaluate.text_stream import GrowingText
from txl.evaluate.typed_text import count_unknown, token_ids
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision


class GenerateKeywords(SamplingKeywords, total=False):
    """Keyword arguments of `Model.generate`."""

    include_prompt: bool
    stop: str | Sequence[str]
    stop_tokens: str | Sequence[str]


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
        check_finite_weights(loaded)
        self.vocab, self.config, self.metric = loaded.vocab, loaded.architecture, loaded.data.metric
        self.checkpoint, self.geometry, self.precision = loaded.folder, geometry, precision
        self.device = next(loaded.model.parameters()).device
        self._size = sum(p.numel() for p in loaded.model.parameters())
        self.runtime = choose_runtime(runtime, loaded.model, geometry)
        if self.runtime not in (Runtime.eager, Runtime.cached):
            raise ConfigError(f"runtime={runtime.name} reads whole segments; use runtime=auto, eager or cached")
        self._model: TokenModel = loaded.model
        if self.runtime is Runtime.cached:
            with autocast(precision, self.device):
                self._model = CachedTransformerXL(with_fixed_weights(loaded.model), geometry)
        self._sampler = TokenSampler(self._model, geometry, precision)

    def __repr__(self) -> str:
        known = f"{len(self.vocab):,} {self.vocab.noun}"
        return f"<txl.Model {self.config.name}: {self._size:,} parameters, {known}, {self.geometry}>"

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
        return list(self.score_stream(ids, context, token_losses))

    def score_stream(
        self, ids: Iterable[Sequence[int] | np.ndarray], context: Sequence[int] = (), token_losses: bool = False
    ) -> Iterator[Score]:
        """As `score_ids`, for any number of texts: the memory that it takes does not grow with them.

        Args:
            ids: the tokens of each text. Some are read ahead, so that texts of similar length are read together.
            context: tokens before each text.
            token_losses: also keep the loss of every token.

        Yields:
            The score of each text, in their order.
        """
        scorer = TokenScorer(self._model, self.geometry, self.precision)
        return self._scores(ids, lambda arrays: scorer.score_stream(arrays, context), token_losses)

    def score_in_sequence(
        self, ids: Iterable[Sequence[int] | np.ndarray], context: Sequence[int] = (), token_losses: bool = False
    ) -> Iterator[Score]:
        """As `score_ids`, but the context of each text is `context` and all texts before it.

        Args:
            ids: the tokens of each text, in their order.
            context: tokens before the first text.
            token_losses: also keep the loss of every token.

        Yields:
            The score of each text, as soon as it is known.
        """
        scorer = TokenScorer(self._model, self.geometry, self.precision)
        return self._scores(ids, lambda arrays: scorer.score_in_sequence(arrays, context), token_losses)

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

    def _scores(
        self,
        ids: Iterable[Sequence[int] | np.ndarray],
        score: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]],
        token_losses: bool,
    ) -> Iterator[Score]:
        """The scores of texts that `score` yields the losses of, in their order; it may read ahead."""
        waiting: deque[np.ndarray] = deque()

        def arrays() -> Iterator[np.ndarray]:
            for one in ids:
                waiting.append(self._checked(one))
                yield waiting[-1]

        for losses in score(arrays()):
            yield self._score(waiting.popleft(), losses, token_losses)

    def _score(self, ids: np.ndarray, losses: np.ndarray, with_tokens: bool) -> Score:
        tokens = None
        if with_tokens:
            names = [self.vocab.decode([token]) for token in ids[len(ids) - len(losses) :].tolist()]
            tokens = list(zip(names, losses.tolist(), strict=True))
        return Score(float(losses.sum()), len(losses), count_unknown(ids, self.vocab), tokens)

    # ------------------------------------------------------------------ generation

    @overload
    def generate(
        self, prompt: str, max_tokens: int = ..., *, stream: Literal[False] = ..., **options: Unpack[GenerateKeywords]
    ) -> str: ...

    @overload
    def generate(
        self, prompt: str, max_tokens: int = ..., *, stream: Literal[True], **options: Unpack[GenerateKeywords]
    ) -> Iterator[str]: ...

    def generate(
        self, prompt: str, max_tokens: int = 200, *, stream: bool = False, **options: Unpack[GenerateKeywords]
    ) -> str | Iterator[str]:
        """Continue a text.

        Args:
            prompt: how the text begins.
            max_tokens: how many tokens to write.
            stream: return the text piece by piece while it grows.
            options: include_prompt (the text begins with the prompt; true), stop (the text ends before this string, or
                before the first of several), stop_tokens (the same for tokens; `eos` is the vocabulary's end token),
                and of `Sampling` temperature (0 is greedy), top_k, top_p, min_p, repetition_penalty and seed.

        Returns:
            The text; with `stream` an iterator over its pieces.

        Raises:
            ConfigError: for an empty prompt, a prompt or stop token outside of the vocabulary, or an option outside of
                its range.
        """
        include_prompt = options.pop("include_prompt", True)
        stop, stop_tokens = _as_list(options.pop("stop", ())), _as_list(options.pop("stop_tokens", ()))
        numbers = cast(SamplingKeywords, options)  # the others were taken out
        sampling = Sampling(max_tokens=max_tokens, stop=stop, stop_tokens=stop_tokens, **numbers)
        check_bounds(sampling)
        pieces = self._pieces(self._encode_prompt(prompt), sampling, include_prompt)
        return pieces if stream else "".join(pieces)

    def _pieces(self, prompt: list[int], sampling: Sampling, include_prompt: bool) -> Iterator[str]:
        text = self._grow(prompt, sampling)

        def pieces() -> Iterator[str]:
            if include_prompt:
                yield text.prompt_text
            with closing(self._sampler.draw([prompt], sampling)) as drawn:
                for _, token, _ in drawn:
                    if piece := text.add(token):
                        yield piece
                    if text.ended:
                        break
            if piece := text.finish():
                yield piece

        return pieces()

    def continue_texts(
        self, prompts: Sequence[str], sampling: Sampling, on_piece: Callable[[int, str], None] | None = None
    ) -> list[GeneratedText]:
        """Continue several texts together, as `generate` would each of them.

        Args:
            prompts: how the texts begin.
            sampling: how tokens are drawn, and where texts end; text i uses the random numbers of seed + i.
            on_piece: on_piece(i, piece) is called for every piece of text i, beginning with its prompt.

        Returns:
            The texts with their tokens and log-probabilities.
        """
        ids = [self._encode_prompt(prompt) for prompt in prompts]
        texts = [self._grow(prompt, sampling) for prompt in ids]
        show = on_piece or (lambda i, piece: None)
        for i, text in enumerate(texts):
            show(i, text.prompt_text)

        def on_token(i: int, token: int) -> bool:
            show(i, texts[i].add(token))
            return not texts[i].ended

        written = self._sampler.continue_prompts(ids, sampling, on_token)
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

    def _grow(self, prompt: list[int], sampling: Sampling) -> GrowingText:
        return GrowingText(self.vocab, prompt, sampling.stop, token_ids(sampling.stop_tokens, self.vocab))


def _as_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def open_model(config: EvaluateConfig, device: torch.device) -> Model:
    """The model that a configuration names, with its lengths, precision and runtime."""
    precision = config.precision.name
    set_matmul_precision(precision)
    loaded = load_trained_model(
        config.checkpoint, device, parameter_dtype(precision), config.config_file, config.data_path
    )
    geometry, _ = evaluation_geometry(config, loaded)
    return Model(loaded, geometry, config.runtime, precision)
