"""What a run tells the world: console lines, train.log, one log per rank, metrics.jsonl, summary.json, wandb.

metrics.jsonl is the truth; a terminal, a pipe or a wandb that goes away never hurts the run.
"""

import json
import logging
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

from txl.config.geometry import Geometry
from txl.config.tracking import TrackingConfig, WandbMode
from txl.files import flatten, json_values, write_json
from txl.system.console import ProgressBar, is_terminal, log_to_console, printable
from txl.system.versions_and_devices import environment_record
from txl.tracking import dllogger
from txl.tracking.metrics_file import cut_back
from txl.tracking.wandb_sink import WandbSink

log = logging.getLogger(__name__)


WIDTH = 100  # of the lines that frame a block


class Tracker:
    """The record of one run on one rank.

    Every rank writes the lines that it is given to logs/rank_N.log; rank 0 alone writes to the console and to the
    other files. With `run_dir=None` nothing but the console is written. `resume_step` cuts metrics.jsonl back to that
    step, None to its beginning, so that no step stands twice.
    """

    def __init__(
        self,
        run_dir: Path | None,
        config: TrackingConfig,
        *,
        run_config: dict,
        metric: str,
        max_step: int,
        is_main: bool,
        rank: int,
        resume_step: int | None,
    ):
        self.run_dir, self.metric, self.is_main = run_dir, metric, is_main
        self._ended = self._closed = False
        self._metrics = self._dllogger = self._wandb = self._bar = None
        self._last = {"loss": None, "tokens_per_second": None}
        if is_main:
            self._console = log_to_console()
            if is_terminal(sys.stdout):
                self._console.bar = self._bar = ProgressBar(max_step, resume_step or 0)
        self._handlers = self._file_handlers(rank)
        if not is_main or run_dir is None:
            return
        cut_back(run_dir / "metrics.jsonl", resume_step or 0)
        self._metrics = open(run_dir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        if config.dllogger:
            file = run_dir / config.dllogger
            cut_back(file, resume_step or 0, dllogger.stays)
            self._dllogger = dllogger.DLLogger(file, json_values(run_config))
        if config.environment:
            write_json(run_dir / "environment.json", environment_record(), indent=1)
        if config.wandb.mode is not WandbMode.none:
            self._wandb = WandbSink(run_dir, config.wandb, run_config)

    def _file_handlers(self, rank: int) -> list[logging.Handler]:
        """Every line of the package goes to this rank's own log, and on rank 0 to train.log, as on the console."""
        if self.run_dir is None:
            return []
        (self.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        own = file_handler(self.run_dir / "logs" / f"rank_{rank}.log")
        own.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers = [own, file_handler(self.run_dir / "train.log")] if self.is_main else [own]
        package = logging.getLogger("txl")
        package.setLevel(logging.INFO)
        for handler in handlers:
            package.addHandler(handler)
        return handlers

    # ------------------------------------------------------------------ events

    def train_step(
        self,
        *,
        epoch: int,
        step: int,
        batch: int,
        n_batches: int,
        lr: float,
        ms_per_batch: float,
        tokens_per_second: float,
        loss: float,
        grad_norm: float,
        tokens_seen: int,
        loss_scale: float | None = None,
    ) -> None:
        """The mean over the steps since the last call. `loss` in nats per token, `batch` counts within the epoch."""
        score = score_of(loss, self.metric)
        self._last = {"loss": loss, "tokens_per_second": tokens_per_second}
        if self._bar is not None:
            self._bar.show(step, loss, tokens_per_second)
        self.message(
            f"| epoch {epoch:3d} step {step:>8d} | batches {batch:>6d} / {n_batches:d} | lr {lr:.3e} "
            f"| ms/batch {ms_per_batch:5.1f} | tok/s {tokens_per_second:7.0f} | loss {loss:5.2f} "
            f"| {self.metric} {score:{'9.5f' if self.metric == 'bpc' else '9.2f'}}"
        )
        scale = {} if loss_scale is None else {"loss_scale": loss_scale}
        self._record(
            "train",
            step,
            {
                "epoch": epoch,
                "batch": batch,
                "n_batches": n_batches,
                "lr": lr,
                "ms_per_batch": ms_per_batch,
                "tokens_per_second": tokens_per_second,
                "loss": loss,
                self.metric: score,
                "grad_norm": grad_norm,
                "tokens_seen": tokens_seen,
            }
            | scale,
        )

    def validation(
        self,
        *,
        number: int,
        step: int,
        seconds: float,
        loss: float,
        tokens: int,
        geometry: Geometry,
        batch_size: int,
        is_best: bool,
    ) -> None:
        """A validation: `loss` in nats per token over `tokens` tokens, measured under `geometry`."""
        self.message("-" * WIDTH)
        self.message(
            f"| Eval {number:3d} at step {step:>8d} | time: {seconds:5.2f}s"
            f"{self._outcome('valid', loss)} | {geometry} batch {batch_size}"
        )
        self.message("-" * WIDTH)
        self._record("valid", step, self._result(seconds, loss, tokens, geometry, batch_size) | {"is_best": is_best})

    def test(
        self, *, split: str, seconds: float, loss: float, tokens: int, geometry: Geometry, batch_size: int, step: int
    ) -> None:
        """The evaluation at the end of training, of the weights of `step`."""
        self._end_of_training()
        self.message("=" * WIDTH)
        self.message(
            f"| End of training | {split} time: {seconds:5.2f}s"
            f"{self._outcome(split, loss)} | {geometry} batch {batch_size}"
        )
        self.message("=" * WIDTH)
        self._record("test", step, self._result(seconds, loss, tokens, geometry, batch_size) | {"split": split})

    def message(self, text: str) -> None:
        """A line (or several) on the console and in the logs."""
        log.info("%s", text)

    def progress(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        """Called every step; a clock reading unless the bar is due. None: what the last step line said."""
        if self._bar is not None and self._bar.is_due():
            last = self._last
            self._bar.show(
                step,
                last["loss"] if loss is None else loss,
                last["tokens_per_second"] if tokens_per_second is None else tokens_per_second,
            )

    def summary(self, values: dict) -> None:
        """The end of a training: time, speed, where it lies, the sample; summary.json."""
        self._end_of_training()
        if "train_seconds" in values:
            self.message(f"Training time: {values['train_seconds'] / 60:.2f} minutes")
        if "tokens_per_second" in values:
            self.message(f"Training throughput: {values['tokens_per_second']:.2f} tok/s")
        if values.get("sample"):
            self.message(f"Sample:\n{printable(values['sample'])}")
        if self.run_dir is not None:
            self.message(f"Run folder: {self.run_dir}")
            if self.is_main:
                write_json(self.run_dir / "summary.json", values, indent=1)
        if self._dllogger is not None:
            loss = values["best_valid_loss"]
            best = {"loss": loss, self.metric: score_of(loss, self.metric)} if math.isfinite(loss) else {}
            self._dllogger.write([], json_values(dllogger.summary(values, best)))
        if self._wandb is not None:
            self._wandb.summary(flatten(json_values(values), "/"))

    def close(self, exit_code: int = 0) -> None:
        """Finish everything; wandb gets a limited time for it. Calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._close_bar()
        if self._wandb is not None:
            self._wandb.close(exit_code)
        for file in (self._metrics, self._dllogger):
            if file is not None:
                file.close()
        for handler in self._handlers:
            logging.getLogger("txl").removeHandler(handler)
            handler.close()

    # ------------------------------------------------------------------ what events have in common

    def _outcome(self, split: str, loss: float) -> str:
        score = score_of(loss, self.metric)
        number = f"{score:{'9.5f' if self.metric == 'bpc' else '9.3f'}}"
        return f" | {split} loss {loss:5.2f} | {split} {self.metric} {number}"

    def _result(self, seconds: float, loss: float, tokens: int, geometry: Geometry, batch_size: int) -> dict:
        result = {"loss": loss, self.metric: score_of(loss, self.metric), "seconds": seconds, "tokens": tokens}
        return result | asdict(geometry) | {"batch_size": batch_size}

    def _end_of_training(self) -> None:
        if not self._ended:
            self._ended = True
            self._close_bar()
            self.message("-" * WIDTH)
            self.message("End of training")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = self._console.bar = None

    def _record(self, kind: str, step: int, values: dict) -> None:
        if self._metrics is not None:
            line = json_values({"kind": kind, "step": step} | values | {"time": round(time.time(), 3)})
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        if self._dllogger is not None and kind != "test":  # the tested weights' results are in its summary
            self._dllogger.log(kind, step, json_values(values))
        if self._wandb is not None:
            named = {f"{kind}/{key}": value for key, value in values.items()}
            # The tested weights may be older than the last step, and wandb takes no step back.
            self._wandb.log(named, None if kind == "test" else step)


# --------------------------------------------------------------------------- numbers and files


def score_of(loss: float, metric: str) -> float:
    """Nats per token -> perplexity (`ppl`) or bits per character (`bpc`)."""
    return loss / math.log(2) if metric == "bpc" else math.exp(min(loss, 700.0))


def file_handler(path: Path) -> logging.Handler:
    return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
