"""Targets that a training or an evaluation must reach. Missing one gives the exit code MISSED_TARGET."""

import math
from dataclasses import dataclass
from typing import Any

from txl.config.data import Metric
from txl.config.schema import RunConfig


@dataclass(frozen=True)
class Targets:
    """What must be reached; None: no target."""

    perplexity: float | None  # largest perplexity, or bits per character if that is the metric
    throughput: float | None  # smallest number of tokens per second
    section: str = ""  # in front of the keys in messages: `train.` for a training

    def missed_score(self, split: str, metric: Metric, score: float) -> str | None:
        """A message if the score of a split is worse than the target."""
        if self.perplexity is None or score <= self.perplexity:  # NaN is no score that reaches a target
            return None
        return f"{self.section}target_perplexity={self.perplexity:g} was missed: {split} {metric.name} {score:.3f}"

    def missed_speed(self, tokens_per_second: float) -> str | None:
        """A message if the throughput is below the target."""
        if self.throughput is None or tokens_per_second >= self.throughput:
            return None
        return f"{self.section}target_throughput={self.throughput:g} was missed: {tokens_per_second:.0f} tok/s"


def missed_training_targets(config: RunConfig, summary: dict[str, Any]) -> list[str]:
    """A line for every target of a training that its summary misses. What is no number misses every target."""
    train, metric = config.train, config.data.metric
    targets = Targets(train.target_perplexity, train.target_throughput, "train.")
    test = summary.get("test")
    score = test.get(metric.name) if isinstance(test, dict) else None
    missed = [
        targets.missed_speed(_number(summary.get("tokens_per_second"))),
        targets.missed_score("test", metric, _number(score)),
    ]
    return [line for line in missed if line is not None]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
