"""Evaluation that learns from the text that it has scored: dynamic evaluation and the neural cache."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from txl.config.bounds import above_zero, below_one, zero_or_more
from txl.errors import refuse_unless


class Dynamic(Enum):
    """How the weights follow the text."""

    none = "none"
    sgd = "sgd"  # a step of gradient descent
    rms = "rms"  # the same, divided by a running root mean square, which starts at that of the training split


# Chosen on the validation splits of wikitext-mini and tinyshakespeare (docs/results/dynamic.md): rate, decay.
DYNAMIC_DEFAULTS = {Dynamic.sgd: (0.03, 0.0), Dynamic.rms: (1e-4, 0.0)}


@dataclass(kw_only=True)
class Adaptation:
    """How an evaluation learns. By default it does not, and the model is the same for the whole text.

    Dynamic evaluation is that of Krause et al. (2019, arXiv:1904.08378); the cache that of Grave et al. (2017,
    arXiv:1612.04426).
    """

    dynamic: Dynamic = Dynamic.none
    dynamic_rate: float | None = above_zero(None)  # null: DYNAMIC_DEFAULTS
    dynamic_decay: float | None = zero_or_more(None, most=1)  # share of the way back to the trained weights per update
    dynamic_segments: int = above_zero(1)  # segments per update
    dynamic_beta: float = below_one(0.99997)  # rms: share of the mean square that is kept at every update
    dynamic_statistics: int = above_zero(100)  # rms: segments of the training split that the gradients are taken from
    dynamic_attention: bool = True  # attention learns; false: the gradient takes its output as a constant
    dynamic_words: int | None = above_zero(None)  # only vectors of words among so many last tokens learn; null: all
    neural_cache: int | None = above_zero(None)  # tokens whose hidden states are remembered; null: no cache
    cache_theta: float = zero_or_more(0.015)  # how much nearer hidden states count more
    cache_lambda: float = below_one(0.3)  # share of the cache in the mixture

    @property
    def adapts(self) -> bool:
        """Whether the evaluation learns at all."""
        return self.dynamic is not Dynamic.none or self.neural_cache is not None

    @property
    def rate(self) -> float:
        """The size of an update."""
        return DYNAMIC_DEFAULTS[self.dynamic][0] if self.dynamic_rate is None else self.dynamic_rate

    @property
    def decay(self) -> float:
        """The share of the way back to the trained weights at every update."""
        return DYNAMIC_DEFAULTS[self.dynamic][1] if self.dynamic_decay is None else self.dynamic_decay

    def settings(self) -> dict[str, Any]:
        """What stands beside a result: everything that it depends on."""
        found: dict[str, Any] = {}
        if self.dynamic is not Dynamic.none:
            found |= {"dynamic": self.dynamic.name, "rate": self.rate, "decay": self.decay}
            found |= {"segments": self.dynamic_segments}
            found |= {} if self.dynamic_attention else {"attention": "constant"}
            found |= {} if self.dynamic_words is None else {"words": self.dynamic_words}
        if self.dynamic is Dynamic.rms:
            found |= {"beta": self.dynamic_beta, "statistics": self.dynamic_statistics}
        if self.neural_cache is not None:
            found |= {"neural_cache": self.neural_cache, "theta": self.cache_theta, "lambda": self.cache_lambda}
        return found

    @property
    def adaptation_text(self) -> str:
        """The settings as they stand behind the lengths of a result; empty if the evaluation does not learn."""
        return " ".join(f"{key} {value}" for key, value in self.settings().items())


def check_adaptation(options: Adaptation, runtime: str, precision: str, repeat: int, times: bool) -> None:
    """Raises ConfigError for options that an evaluation which learns cannot have.

    Args:
        options: How it learns.
        runtime: `runtime=` of the evaluation.
        precision: `precision=` of the evaluation.
        repeat: How often the split is read.
        times: Whether the time of every segment is asked for.
    """
    defaults, learns, is_rms = Adaptation(), options.dynamic is not Dynamic.none, options.dynamic is Dynamic.rms
    of_both = ("dynamic_rate", "dynamic_decay", "dynamic_segments", "dynamic_attention", "dynamic_words")
    for needed, is_used, keys in (
        ("dynamic=sgd or dynamic=rms", learns, of_both),
        ("dynamic=rms", is_rms, ("dynamic_beta", "dynamic_statistics")),
        ("neural_cache", options.neural_cache is not None, ("cache_theta", "cache_lambda")),
    ):
        for key in keys:
            value = getattr(options, key)
            refuse_unless(is_used or value == getattr(defaults, key), key, value, f"has no meaning without {needed}")
    rule = "keeps the words of one segment; leave dynamic_segments out"
    words, segments = options.dynamic_words, options.dynamic_segments
    refuse_unless(words is None or segments == 1, "dynamic_words", words, rule)
    if not options.adapts:
        return
    what = f"dynamic={options.dynamic.name}" if learns else "neural_cache"
    allowed, rule = {"auto", "eager"}, f"has fixed weights or shapes; {what} needs runtime=eager"
    if not learns:
        allowed = {"auto", "eager", "cached"}
    elif not options.dynamic_attention:
        allowed, rule = {"auto", "cached"}, "cannot run dynamic_attention=false; leave it out"
    refuse_unless(runtime in allowed, "runtime", runtime, rule)
    rule = f"loses small gradients; use precision=fp32 or bf16 with {what}"
    refuse_unless(precision != "fp16" or not learns, "precision", precision, rule)
    rule = f"reads a text again that {what} has learnt; leave it out"
    refuse_unless(repeat == 1, "repeat", repeat, rule)
    refuse_unless(not times, "latency", True, f"measures the runtimes, not {what}; leave latency and npz out")
