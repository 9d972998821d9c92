"""`evaluate.py`: the loss of a checkpoint's model over splits of its data set, or over a typed text."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from txl.config.adaptation import Dynamic
from txl.config.compose import to_dict
from txl.config.data import Metric
from txl.config.output_files import writing_output
from txl.config.schema import EvaluateConfig, Runtime, Split
from txl.data.batches import TokenStream
from txl.data.corpus import Corpus, open_corpus
from txl.errors import ConfigError
from txl.evaluate.adaptation import evaluate_adaptively
from txl.evaluate.dynamic_weights import gradient_roots
from txl.evaluate.exported_program import FixedShapeProgram
from txl.evaluate.kv_cache import check_cacheable
from txl.evaluate.load_model import evaluation_geometry, load_trained_model
from txl.evaluate.loss import EvaluationResult, SegmentProgress, evaluate_stream, evaluation_stream
from txl.evaluate.runtimes import RunnableModel, build_runtime, choose_runtime
from txl.evaluate.score import TokenScorer
from txl.evaluate.targets import Targets
from txl.evaluate.typed_text import count_unknown, read_text_argument
from txl.files import write_json
from txl.system.console import CountBar
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision
from txl.system.process_exit import MISSED_TARGET
from txl.system.timing import percentiles
from txl.system.world import World, columns_of
from txl.tracking.dllogger import DLLoggerFile, evaluation_summary, with_original_names
from txl.tracking.scores import score_from_loss

RULE = "=" * 79  # a line of a terminal

STATISTICS_COLUMNS = 10  # of the training split, read at once for dynamic=rms


class Evaluator:
    """One evaluation on one rank. Rank 0 prints and writes the files. `run()` returns the exit code."""

    def __init__(self, config: EvaluateConfig, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        self.precision = config.precision.name
        set_matmul_precision(self.precision)
        dtype = parameter_dtype(self.precision)
        self.loaded = load_trained_model(config.checkpoint, device, dtype, config.config_file, config.data_path)
        self.geometry, self.batch_size = evaluation_geometry(config, self.loaded)
        self.runtime = choose_runtime(config.runtime, self.loaded.model, self.geometry)
        if config.dynamic is not Dynamic.none:  # a change of attention's weights would make its cache wrong
            self.runtime = Runtime.eager if config.dynamic_attention else Runtime.cached
            if not config.dynamic_attention:
                check_cacheable(self.loaded.model, self.geometry, "dynamic_attention=false", "dynamic_attention=true")
            self.batch_size = config.batch_size or 1  # in the order of the text
        self.latencies: list[float] | None = [] if config.latency or config.npz else None
        self.roots: list[Tensor] | None = None  # for dynamic=rms
        self.dllogger = None
        self.data: dict[str, str | None] | None = None  # fingerprints of the data set, now and when it was trained on
        if config.dllogger and world.is_main:
            Path(config.dllogger).unlink(missing_ok=True)
            self.dllogger = DLLoggerFile(Path(config.dllogger), to_dict(config))

    def run(self) -> int:
        """Evaluate, write the files, and return the exit code: 3 if a target was missed."""
        results = self._evaluate_splits() if self.config.text is None else self._evaluate_text(self.config.text)
        if self.world.is_main and self.config.json:
            with writing_output("json", self.config.json):
                write_json(Path(self.config.json), self._record(results), indent=1)
        if self.world.is_main and self.config.npz:
            seconds = np.array(self.latencies)
            speed = self.batch_size * self.geometry.tgt_len / seconds
            with writing_output("npz", self.config.npz):
                np.savez(self.config.npz, latency_seconds=seconds, tokens_per_second=speed)
        return self._check_targets(results)

    # ------------------------------------------------------------------ splits of the data set

    def _evaluate_splits(self) -> dict[str, dict[str, Any]]:
        """The results by split."""
        config, split = self.config, self.config.split
        corpus = self._open_corpus()
        self._compare_data(corpus)
        columns = columns_of(self.world.rank, self.world.world_size, self.batch_size)
        model = self._build_runtime(max(1, len(columns)))
        self._print_settings(self.batch_size)
        names = ["valid", "test"] if split is Split.all else [split.name]
        streams = {name: evaluation_stream(corpus, name, self.geometry, self.batch_size, self.world) for name in names}
        results = {}
        if config.dynamic is Dynamic.rms:
            self._collect_gradients(corpus)
        for name, stream in streams.items():
            latencies: list[float] | None = None if self.latencies is None else []
            segments = min(stream.n_batches, (config.max_steps or stream.n_batches) + stream.n_warmup) * config.repeat
            with CountBar(segments, enabled=self.world.is_main and config.log_interval is None) as bar:
                progress = self._progress(self.batch_size * self.geometry.tgt_len, bar)
                result = self._evaluate(model, stream, latencies, progress)
            self._print_result(name, result, segments, latencies)
            results[name] = result.to_dict() | ({"adaptation": config.settings()} if config.adapts else {})
        return results

    def _evaluate(
        self,
        model: RunnableModel,
        stream: TokenStream,
        latencies: list[float] | None,
        progress: SegmentProgress | None,
    ) -> EvaluationResult:
        config, lengths = self.config, (self.geometry, self.batch_size)
        if not config.adapts:
            steps = (config.max_steps, config.repeat)
            return evaluate_stream(model, stream, *lengths, self.precision, *steps, latencies, progress)
        assert not isinstance(model, FixedShapeProgram), "the rules have checked it"
        return evaluate_adaptively(
            model, stream, *lengths, config, self.precision, self.roots, config.max_steps, progress
        )

    def _collect_gradients(self, corpus: Corpus) -> None:
        """What dynamic=rms needs to know of the training split."""
        segments, geometry = self.config.dynamic_statistics, self.geometry
        self._print(f"Reading {segments} segments of the training split for the sizes of gradients")
        stream = evaluation_stream(corpus, "train", geometry, STATISTICS_COLUMNS, self.world)
        self.roots = gradient_roots(self.loaded.model, stream, geometry, segments, self.precision)

    def _open_corpus(self) -> Corpus:
        """The data set that the checkpoint was trained on. Raises ConfigError if its vocabulary is another one."""
        data, vocab = self.loaded.data, self.loaded.vocab
        split = self.config.split
        corpus = open_corpus(data, vocab, ("valid", "test") if split is Split.all else (split.name,))
        if corpus.vocab.fingerprint != vocab.fingerprint:
            raise ConfigError(
                f"checkpoint={self.config.checkpoint} was trained with another vocabulary ({len(vocab):,} "
                f"tokens) than data={data.name} has ({len(corpus.vocab):,}); "
                "point data_path at the data that it was trained on"
            )
        return corpus

    def _compare_data(self, corpus: Corpus) -> None:
        """Warn if the data set is not the one that the checkpoint was trained on; both go to the JSON file."""
        trained = self.loaded.data_fingerprint
        self.data = {"fingerprint": corpus.fingerprint, "trained_on": trained}
        if trained not in (None, corpus.fingerprint):
            self._print(
                f"warning: data={corpus.name} changed since the training: its fingerprint is {corpus.fingerprint}, the "
                f"checkpoint was trained on {trained}; the result is that of other data"
            )

    def _build_runtime(self, batch_size: int) -> RunnableModel:
        program = self.config.program
        if self.config.dynamic is not Dynamic.none:
            return self.loaded.model
        if self.world.world_size > 1 and program is not None:
            raise ConfigError(f"program={program} is for one process; leave it out, or use gpus=1")
        with autocast(self.precision, self.device):
            return build_runtime(
                self.loaded.model, self.runtime, self.geometry, batch_size, program, self.config.trust_program
            )

    # ------------------------------------------------------------------ a typed text

    def _evaluate_text(self, text: str) -> dict[str, dict[str, Any]]:
        """The loss of a text: its first token is given, all others are predicted."""
        vocab = self.loaded.vocab
        ids = vocab.encode_typed(read_text_argument("text", text), end_line=True)
        if len(ids) < 2:
            raise ConfigError(f"text={text!r} has one token: nothing to predict from it; write more")
        self.batch_size = 1
        model = self._build_runtime(1)
        self._print_settings(1)
        latencies: list[float] | None = None if self.latencies is None else []
        began = time.perf_counter()
        (losses,) = TokenScorer(model, self.geometry, self.precision, latencies).score([ids])
        seconds = time.perf_counter() - began
        result = EvaluationResult(losses.mean().item(), len(losses), seconds, self.geometry, 1)
        self._print_result("text", result, -(-len(losses) // self.geometry.tgt_len), latencies)
        unknown = count_unknown(ids, vocab)
        self._print(f"{result.tokens} tokens predicted, {unknown} unknown of {len(ids)}")
        values = result.to_dict() | {"unknown": unknown}
        if self.config.token_losses:
            names = [vocab.decode([token]) for token in ids[1:].tolist()]
            values["token_losses"] = list(zip(names, losses.tolist(), strict=True))
            for name, loss in values["token_losses"]:
                self._print(f"{loss:9.4f}  {name!r}")
        return {"text": values}

    # ------------------------------------------------------------------ what is printed and recorded

    def _print(self, text: str) -> None:
        """A line on rank 0's console, and in the file that `log=` names."""
        if self.world.is_main:
            print(text, flush=True)
            if self.config.log:
                with open(self.config.log, "a", encoding="utf-8") as file:
                    file.write(text + "\n")

    def _print_settings(self, batch_size: int) -> None:
        g = self.geometry
        self._print(
            f"Evaluating with math {self.precision.name} type {self.runtime.name} bsz {batch_size}\n"
            f"  tgt_len {g.tgt_len} ext_len {g.ext_len} mem_len {g.mem_len} clamp_len {g.clamp_len} "
            f"same_length {str(g.same_length).lower()}{' ' * self.config.adapts}{self.config.adaptation_text}"
        )

    def _progress(self, tokens: int, bar: CountBar) -> SegmentProgress | None:
        """Prints a line every `log_interval` segments of `tokens` tokens, if that was asked for, and moves the bar."""
        if not self.world.is_main:
            return None
        return SegmentProgress(self.config.log_interval, tokens, self._print_progress, bar)

    def _print_progress(self, values: dict[str, Any]) -> None:
        text = f"| batch {values['batch']:>6d}/{values['n_batches']:d} "
        text += f"| ms/batch {values['ms_per_batch']:5.2f} | tok/s {values['tokens_per_second']:5.0f}"
        if "loss" in values:
            metric = self.loaded.data.metric
            values[metric.name] = score_from_loss(values["loss"], metric.name)
            text += f" | loss {values['loss']:5.2f} | {metric.name} {values[metric.name]:5.2f}"
        self._print(text)
        if self.dllogger is not None:
            self.dllogger.append([values["segments"]], with_original_names("eval", values))

    def _print_result(self, name: str, result: EvaluationResult, segments: int, latencies: list[float] | None) -> None:
        self._print(f"Time : {result.seconds:.2f}s, {1000 * result.seconds / max(1, segments):.2f}ms/segment")
        self._print(RULE)
        if self.loaded.data.metric is Metric.bpc:
            self._print(f"| {name} loss {result.loss:5.2f} | {name} bpc {result.bpc:9.5f}")
        else:
            self._print(f"| {name} loss {result.loss:5.2f} | {name} ppl {result.ppl:9.3f}")
        self._print(RULE)
        found = percentiles(latencies, self.config.percentiles) if latencies else None
        if self.dllogger is not None:
            self.dllogger.append([], evaluation_summary(result.to_dict(), found))
        if latencies and found and self.latencies is not None:
            self.latencies += latencies
            tokens = self.batch_size * self.geometry.tgt_len / found["mean"]
            self._print(f"Throughput Avg: {tokens:.2f} tok/s")
            self._print(f"Latency Avg: {1000 * found['mean']:.2f} ms")
            for percent in self.config.percentiles:
                self._print(f"Latency {percent:g}%: {1000 * found[f'p{percent:g}']:.2f} ms")
            self._print(RULE)

    def _record(self, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The results with everything that they depend on, for the JSON file."""
        record: dict[str, Any] = {
            "checkpoint": str(self.loaded.folder),
            "runtime": self.runtime.name,
            "precision": self.precision.name,
            "world_size": self.world.world_size,
            "metric": self.loaded.data.metric.name,
        }
        if self.data is not None:
            record["data"] = self.data
        if self.latencies:
            record["latency_seconds"] = percentiles(self.latencies, self.config.percentiles)
        return record | results

    def _check_targets(self, results: dict[str, dict[str, Any]]) -> int:
        """Print every target that was missed; returns the exit code."""
        targets = Targets(self.config.target_perplexity, self.config.target_throughput)
        metric, code = self.loaded.data.metric, 0
        for name, values in results.items():
            missed = targets.missed_score(name, metric, values[metric.name])
            for message in (missed, targets.missed_speed(values["tokens_per_second"])):
                if message is not None:
                    self._print(message)
                    code = MISSED_TARGET
        return code
