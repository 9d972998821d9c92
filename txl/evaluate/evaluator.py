"""What `evaluate.py` does on a rank: the model of a checkpoint, in the runtime asked for, over splits or typed text."""

import math
from pathlib import Path

import numpy as np
import torch

from txl.config.compose import to_dict
from txl.config.data import Metric
from txl.config.schema import EvaluateConfig, Split
from txl.data.batches import TokenStream
from txl.data.corpus import open_corpus
from txl.errors import ConfigError
from txl.evaluate.load_model import choose_runtime, geometry_of, in_runtime, load
from txl.evaluate.loss import MISSED_TARGET, Progress, Result, evaluate, evaluation_stream
from txl.evaluate.typed_text import typed_tokens
from txl.files import write_json
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision
from txl.system.timing import percentiles
from txl.system.world import World, columns_of
from txl.tracking.dllogger import DLLogger, evaluated
from txl.tracking.tracker import score_of

RULE = "=" * 100


def check_outputs(config: EvaluateConfig) -> None:
    """Before hours of work: can what they find be written?"""
    for key in ("json", "npz", "log", "dllogger"):
        value = getattr(config, key)
        if value is not None and not Path(value).absolute().parent.is_dir():
            raise ConfigError(f"{key}={value}: there is no folder {Path(value).parent}; make it, or name another file")


class Evaluator:
    """One evaluation on one rank; rank 0 speaks. `run()` returns the exit code."""

    def __init__(self, config: EvaluateConfig, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        set_matmul_precision(config.precision.name)
        check_outputs(config)
        dtype = parameter_dtype(config.precision.name)
        self.loaded = load(config.checkpoint, device, dtype, config.config_file, config.data_path)
        self.geometry, self.batch_size = geometry_of(config, self.loaded)
        self.runtime = choose_runtime(config.runtime, self.loaded.model, self.geometry)
        self.latencies: list[float] | None = [] if config.latency or config.npz else None
        self.dllogger = None
        if config.dllogger and world.is_main:
            Path(config.dllogger).unlink(missing_ok=True)
            self.dllogger = DLLogger(Path(config.dllogger), to_dict(config))

    def run(self) -> int:
        result = self.text() if self.config.text is not None else self.splits()
        if self.world.is_main and self.config.json:
            write_json(Path(self.config.json), result, indent=1)
        if self.world.is_main and self.config.npz:
            seconds = np.array(self.latencies)
            speed = self.batch_size * self.geometry.tgt_len / seconds
            np.savez(self.config.npz, latency_seconds=seconds, tokens_per_second=speed)
        return self._missed_targets(result)

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)
            if self.config.log:
                with open(self.config.log, "a", encoding="utf-8") as file:
                    file.write(text + "\n")

    def _progress(self, tokens: int) -> Progress | None:
        """Lines on the way, where they were asked for; `tokens`: of a segment."""
        if self.config.log_interval is None or not self.world.is_main:
            return None
        return Progress(self.config.log_interval, tokens, self._on_the_way)

    def _on_the_way(self, said: dict) -> None:
        text = f"| step {said['segments']:>8d} | batches {said['batch']:>6d} / {said['n_batches']:d} "
        text += f"| ms/batch {said['ms_per_batch']:5.2f} | tok/s {said['tokens_per_second']:7.0f}"
        if "loss" in said:
            metric = self.loaded.data.metric
            said[metric.name] = score_of(said["loss"], metric.name)
            text += f" | loss {said['loss']:5.2f} | {metric.name} {said[metric.name]:5.2f}"
        self.say(text)
        if self.dllogger is not None:
            self.dllogger.log("eval", said["segments"], said)

    # ------------------------------------------------------------------ splits of the data set

    def splits(self) -> dict:
        config, split = self.config, self.config.split
        corpus = self._corpus()
        columns = columns_of(self.world.rank, self.world.world_size, self.batch_size)
        model = self._in_runtime(max(1, len(columns)))
        self.say(self._introduction(self.batch_size))
        names = ["valid", "test"] if split is Split.all else [split.name]
        streams = {name: evaluation_stream(corpus, name, self.geometry, self.batch_size, self.world) for name in names}
        results = {}
        for name, stream in streams.items():
            latencies = None if self.latencies is None else []
            results[name] = evaluate(
                model,
                stream,
                self.geometry,
                self.batch_size,
                config.precision.name,
                config.max_steps,
                config.repeat,
                latencies,
                self._progress(self.batch_size * self.geometry.tgt_len),
            )
            segments = min(stream.n_batches, (config.max_steps or stream.n_batches) + stream.n_warmup) * config.repeat
            self._summary(name, results[name], segments, latencies)
        return self._record({name: result.to_dict() for name, result in results.items()})

    def _corpus(self):
        """The checkpoint's own data set, or the same one elsewhere; its ids must mean the same."""
        data = self.loaded.data
        corpus = open_corpus(data, self.loaded.vocab)
        if corpus.vocab.fingerprint != self.loaded.vocab.fingerprint:
            raise ConfigError(
                f"checkpoint={self.config.checkpoint} was trained with another vocabulary ({len(self.loaded.vocab):,} "
                f"tokens) than data={data.name} has ({len(corpus.vocab):,}); "
                "point data_path at the data that it was trained on"
            )
        return corpus

    def _in_runtime(self, batch_size: int):
        if self.world.world_size > 1 and self.config.program is not None:
            raise ConfigError(f"program={self.config.program} is of one process; leave it out, or use gpus=1")
        with autocast(self.config.precision.name, self.device):
            return in_runtime(self.loaded.model, self.runtime, self.geometry, batch_size, self.config.program)

    def _introduction(self, batch_size: int) -> str:
        g = self.geometry
        return (
            f"Evaluating with math {self.config.precision.name.name} type {self.runtime.name} bsz {batch_size} "
            f"tgt_len {g.tgt_len} ext_len {g.ext_len} mem_len {g.mem_len} clamp_len {g.clamp_len} "
            f"same_length {str(g.same_length).lower()}"
        )

    def _summary(self, name: str, result: Result, segments: int, latencies: list[float] | None) -> None:
        self.say(f"Time : {result.seconds:.2f}s, {1000 * result.seconds / max(1, segments):.2f}ms/segment")
        self.say(RULE)
        self.say(self._score_line(name, result.loss))
        self.say(RULE)
        found = percentiles(latencies, self.config.percentiles) if latencies else None
        if self.dllogger is not None:
            self.dllogger.write([], evaluated(result.to_dict(), found))
        if found:
            self.latencies.extend(latencies)
            tokens = self.batch_size * self.geometry.tgt_len / found["mean"]
            self.say(f"Throughput Avg: {tokens:.2f} tok/s")
            self.say(f"Latency Avg: {1000 * found['mean']:.2f} ms")
            for percent in self.config.percentiles:
                self.say(f"Latency {percent:g}%: {1000 * found[f'p{percent:g}']:.2f} ms")
            self.say(RULE)

    def _score_line(self, name: str, loss: float) -> str:
        if self.loaded.data.metric is Metric.bpc:
            return f"| {name} loss {loss:5.2f} | {name} bpc {loss / math.log(2):9.5f}"
        return f"| {name} loss {loss:5.2f} | {name} ppl {math.exp(min(loss, 700)):9.3f}"

    def _record(self, values: dict) -> dict:
        record = {
            "checkpoint": str(self.loaded.folder),
            "runtime": self.runtime.name,
            "precision": self.config.precision.name.name,
            "world_size": self.world.world_size,
            "metric": self.loaded.data.metric.name,
        }
        if self.latencies:
            record["latency_seconds"] = percentiles(self.latencies, self.config.percentiles)
        return record | values

    def _missed_targets(self, result: dict) -> int:
        """3 where a result is worse than was asked for."""
        config, code = self.config, 0
        for name, values in result.items():
            if not isinstance(values, dict) or "loss" not in values:
                continue
            score = values[result["metric"]]
            if config.target_perplexity is not None and score > config.target_perplexity:
                missed = f"{name} {result['metric']} {score:.3f}"
                self.say(f"target_perplexity={config.target_perplexity:g} was missed: {missed}")
                code = MISSED_TARGET
            speed = values["tokens_per_second"]
            if config.target_throughput is not None and speed < config.target_throughput:
                self.say(f"target_throughput={config.target_throughput:g} was missed: {speed:.0f} tok/s")
                code = MISSED_TARGET
        return code

    # ------------------------------------------------------------------ text typed by hand

    def text(self) -> dict:
        """The loss of a text: its first token is given, all others are predicted."""
        ids, unknown = typed_tokens(self.config.text, self.loaded.vocab, end_line=True)
        if len(ids) < 2:
            raise ConfigError(f"text={self.config.text!r} has one token: nothing to predict from it; write more")
        self.batch_size = 1
        length = min(self.geometry.tgt_len, len(ids) - 1)
        model = self._in_runtime(1)
        self.say(self._introduction(1))
        stream = TokenStream(ids, 1, length, ext_len=self.geometry.ext_len)
        latencies = None if self.latencies is None else []
        result = evaluate(model, stream, self.geometry, 1, self.config.precision.name, latencies=latencies)
        self._summary("text", result, stream.n_batches, latencies)
        self.say(f"{result.tokens} tokens predicted, {unknown} unknown of {len(ids)}")
        values = result.to_dict() | {"unknown": unknown}
        if self.config.token_losses:
            values["token_losses"] = self._token_losses(ids)
        return self._record({"text": values})

    @torch.no_grad()
    def _token_losses(self, ids: np.ndarray) -> list:
        """[token, nats] of every predicted token, printed as a table."""
        tokens, mems, nats = torch.from_numpy(ids).to(self.device)[None], [], []
        for begin in range(0, len(ids) - 1, self.geometry.tgt_len):
            end = min(begin + self.geometry.tgt_len, len(ids) - 1)
            input = tokens[:, max(0, begin - self.geometry.ext_len) : end]
            with autocast(self.config.precision.name, self.device):
                hidden, mems = self.loaded.model(input, mems, self.geometry)
                nats += self.loaded.model.loss(hidden, tokens[:, begin + 1 : end + 1])[0].tolist()
        table = [[self.loaded.vocab.decode([token]), loss] for token, loss in zip(ids[1:].tolist(), nats, strict=True)]
        for token, loss in table:
            self.say(f"{loss:9.4f}  {token!r}")
        return table
