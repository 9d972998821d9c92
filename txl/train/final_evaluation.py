"""What follows the last training step: the test split, the recipe's evaluation, a sample."""

from typing import Any

from txl.config.data import Metric
from txl.config.geometry import Geometry, valid_geometry
from txl.config.sampling import Sampling
from txl.config.schema import RunConfig, Then
from txl.data.corpus import Corpus
from txl.evaluate.loss import EvaluationResult, evaluate_split
from txl.evaluate.sampling import TokenSampler
from txl.model.transformer import TransformerXL
from txl.system.world import World
from txl.tracking.tracker import Tracker

SAMPLE_PROMPT = 64  # tokens of the validation split that the sample begins with


class FinalEvaluation:
    """The evaluations at the end of a training."""

    def __init__(self, config: RunConfig, corpus: Corpus, model: TransformerXL, world: World, tracker: Tracker):
        """`model` holds the weights to evaluate: those of the best validation, if there was one."""
        self.config, self.corpus, self.model, self.world, self.tracker = config, corpus, model, world, tracker

    def evaluate(self, step: int) -> dict[str, Any]:
        """The entries `test`, `evaluation` and `sample` of the summary, as far as they are asked for.

        `step`: the step that the weights are from.
        """
        values: dict[str, Any] = {}
        if self.config.valid.enabled and "test" in self.corpus.splits:
            values["test"] = self._test(step).to_dict()
        if self.config.then is Then.evaluate:
            values["evaluation"] = self._published_evaluation()
        if self.config.sample_tokens and self.world.is_main:
            values["sample"] = self._sample(self.config.sample_tokens)
        return values

    def _evaluate_split(self, split: str, geometry: Geometry, batch_size: int) -> EvaluationResult:
        precision = self.config.precision.name
        return evaluate_split(self.model, self.corpus, split, geometry, batch_size, precision, self.world)

    def _test(self, step: int) -> EvaluationResult:
        """The test split, with the lengths of validation."""
        result = self._evaluate_split("test", valid_geometry(self.config), self.config.valid.batch_size)
        self.tracker.test(split="test", step=step, **result.measured())
        return result

    def _published_evaluation(self) -> dict[str, Any]:
        """The recipe's evaluation on the test split, or on the validation split if there is no test split."""
        block, split = self.config.evaluation, "test" if "test" in self.corpus.splits else "valid"
        geometry = Geometry(block.tgt_len, block.mem_len, block.ext_len, block.clamp_len, block.same_length)
        result = self._evaluate_split(split, geometry, block.batch_size)
        metric = self.config.data.metric
        score = result.ppl if metric is Metric.ppl else result.bpc
        self.tracker.message(
            f"Evaluation | {result.seconds:.2f} s | {split} loss {result.loss:.3f} | {metric.name} {score:.3f}\n"
            f"  {geometry} batch {block.batch_size}"
        )
        return result.to_dict() | {"split": split}

    def _sample(self, max_tokens: int) -> str:
        """A text that continues the beginning of the validation split."""
        prompt, mem_len = self.corpus.tokens("valid")[:SAMPLE_PROMPT].tolist(), self.config.train.mem_len
        geometry = Geometry(tgt_len=max(1, len(prompt)), mem_len=mem_len, same_length=mem_len > 0)
        sampling = Sampling(max_tokens=max_tokens, temperature=0.6, top_k=40, seed=self.config.seed)
        sampler = TokenSampler(self.model, geometry, self.config.precision.name)
        text = sampler.continue_prompts([prompt], sampling)[0]
        return self.corpus.vocab.decode(text.tokens)
