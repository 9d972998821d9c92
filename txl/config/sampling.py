"""How a text is continued: the options of generation, one list for the command line, the Python API and the code."""

from dataclasses import dataclass, field
from typing import TypedDict

from txl.config.bounds import above_zero, zero_or_more

MOST_SEED = 2**64 - 1  # of torch's generators


@dataclass(kw_only=True)
class Sampling:
    """How tokens are drawn, and where a text ends.

    The penalty comes first, then the temperature; top_k, top_p and min_p then leave tokens out, in this order.
    """

    max_tokens: int = above_zero(200)  # task=generate: how many tokens to write
    repetition_penalty: float = above_zero(1.0)  # tokens of the text so far: log-probability times this (Keskar 2019)
    temperature: float = zero_or_more(1.0)  # 0: always the likeliest token
    top_k: int | None = above_zero(None)  # draw from the k likeliest tokens
    top_p: float | None = above_zero(None, most=1)  # draw from the likeliest tokens that together have this probability
    min_p: float | None = above_zero(None, most=1)  # draw from tokens at least this times as likely as the likeliest
    seed: int = zero_or_more(0, most=MOST_SEED)  # task=generate: of the drawn tokens
    stop: list[str] = field(default_factory=list)  # a text ends before the first of these strings
    stop_tokens: list[str] = field(default_factory=list)  # or of these tokens; `eos`: the vocabulary's end token


class SamplingKeywords(TypedDict, total=False):
    """The numbers among the fields of `Sampling`, for type checkers: keyword arguments of a method (PEP 692)."""

    repetition_penalty: float
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int
