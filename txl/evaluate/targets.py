"""Targets that a training or an evaluation must reach. Missing one gives the exit code MISSED_TARGET."""

from dataclasses import dataclass

from txl.config.data import Metric


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
