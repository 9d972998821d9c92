"""What follows the last step: best weights on the test split, the recipe's evaluation, a text, the targets."""

from txl.config.data import Metric
from txl.config.geometry import Geometry, valid_geometry
from txl.config.schema import RunConfig, Then
from txl.data.corpus import Corpus
from txl.evaluate.loss import MISSED_TARGET, Result, loss_over
from txl.evaluate.sampling import generate
from txl.model.transformer import TransformerXL
from txl.system.world import World
from txl.tracking.tracker import Tracker


class Ending:
    """`model` has the weights that are to be judged: those of the best validation."""

    def __init__(self, config: RunConfig, corpus: Corpus, model: TransformerXL, world: World, tracker: Tracker):
        self.config, self.corpus, self.model, self.world, self.tracker = config, corpus, model, world, tracker

    def evaluate(self, step: int) -> dict:
        """What the summary says beyond training: `test`, `evaluation` and `sample`, where there are such."""
        values = {}
        if self.config.valid.enabled and "test" in self.corpus.splits:
            values["test"] = self._test(step).to_dict()
        if self.config.then is Then.evaluate:
            values["evaluation"] = self._published_evaluation()
        if self.config.sample_tokens and self.world.is_main:
            values["sample"] = self._sample(self.config.sample_tokens)
        return values

    def missed_targets(self, values: dict) -> int:
        """The exit code: not 0 where the summary's numbers are short of what was asked for."""
        train, speed, code = self.config.train, values["tokens_per_second"], 0
        if train.target_throughput is not None and speed < train.target_throughput:
            self.tracker.message(f"train.target_throughput={train.target_throughput:g} was missed: {speed:.0f} tok/s")
            code = MISSED_TARGET
        if train.target_perplexity is not None:
            metric = self.config.data.metric
            reached = values["test"][metric.value]  # data.py saw to it that there is a test split
            if reached > train.target_perplexity:
                missed = f"{'perplexity' if metric is Metric.ppl else 'bits per character'} {reached:.3f}"
                self.tracker.message(f"train.target_perplexity={train.target_perplexity:g} was missed: {missed}")
                code = MISSED_TARGET
        return code

    def _loss_over(self, split: str, geometry: Geometry, batch_size: int) -> Result:
        return loss_over(self.model, self.corpus, split, geometry, batch_size, self.config.precision.name, self.world)

    def _test(self, step: int) -> Result:
        """With the lengths of validation."""
        result = self._loss_over("test", valid_geometry(self.config), self.config.valid.batch_size)
        self.tracker.test(
            split="test",
            seconds=result.seconds,
            loss=result.loss,
            tokens=result.tokens,
            geometry=result.geometry,
            batch_size=result.batch_size,
            step=step,
        )
        return result

    def _published_evaluation(self) -> dict:
        """The recipe's evaluation block, on the test split (or valid, where there is none); also as a log line."""
        block, split = self.config.evaluation, "test" if "test" in self.corpus.splits else "valid"
        geometry = Geometry(block.tgt_len, block.mem_len, block.ext_len, block.clamp_len, block.same_length)
        result = self._loss_over(split, geometry, block.batch_size)
        score = result.ppl if self.config.data.metric is Metric.ppl else result.bpc
        name = self.config.data.metric.value
        self.tracker.message(
            f"| Evaluation | {split} time: {result.seconds:5.2f}s | {split} loss {result.loss:5.2f} "
            f"| {split} {name} {score:9.3f} | {geometry} batch {block.batch_size}"
        )
        return result.to_dict() | {"split": split}

    def _sample(self, max_tokens: int) -> str:
        prompt = self.corpus.tokens("valid")[:64].tolist()
        mem_len = self.config.train.mem_len
        ids = generate(self.model, prompt, max_tokens, mem_len, temperature=0.8, top_k=40, seed=self.config.seed)
        return self.corpus.vocab.decode(ids)
