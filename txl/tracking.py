"""What a run tells the world: console lines, train.log, one log per rank, metrics.jsonl, summary.json, wandb.

metrics.jsonl is the truth; a terminal, a pipe or a wandb that goes away never hurts the run.
"""

import atexit
import contextlib
import json
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from txl import dllogger
from txl.choices import WandbMode
from txl.config import Geometry, TrackingConfig, WandbConfig
from txl.console import ProgressBar, log_to_console, printable, shows_progress
from txl.hardware import environment_record

log = logging.getLogger(__name__)

WIDTH = 100  # of the lines that frame a block
WANDB_PATIENCE = 25.0  # seconds, for its start and for its end
WANDB_QUEUE = 10_000  # lines that may wait while it starts or stalls


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
            if shows_progress(sys.stdout):
                self._console.bar = self._bar = ProgressBar(max_step, resume_step or 0)
        self._handlers = self._file_handlers(rank)
        if not is_main or run_dir is None:
            return
        cut_back(run_dir / "metrics.jsonl", resume_step or 0)
        self._metrics = open(run_dir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        if config.dllogger:
            file = run_dir / config.dllogger
            cut_back(file, resume_step or 0, dllogger.stays)
            self._dllogger = dllogger.DLLogger(file, plain(run_config))
        if config.environment:
            write_json(run_dir / "environment.json", environment_record())
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
                write_json(self.run_dir / "summary.json", values)
        if self._dllogger is not None:
            loss = values["best_valid_loss"]
            best = {"loss": loss, self.metric: score_of(loss, self.metric)} if math.isfinite(loss) else {}
            self._dllogger.write([], plain(dllogger.summary(values, best)))
        if self._wandb is not None:
            self._wandb.summary(flat(plain(values)))

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
            line = plain({"kind": kind, "step": step} | values | {"time": round(time.time(), 3)})
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        if self._dllogger is not None and kind != "test":  # the tested weights' results are in its summary
            self._dllogger.log(kind, step, plain(values))
        if self._wandb is not None:
            named = {f"{kind}/{key}": value for key, value in values.items()}
            # The tested weights may be older than the last step, and wandb takes no step back.
            self._wandb.log(named, None if kind == "test" else step)


# --------------------------------------------------------------------------- numbers and files


def score_of(loss: float, metric: str) -> float:
    """Nats per token -> perplexity (`ppl`) or bits per character (`bpc`)."""
    return loss / math.log(2) if metric == "bpc" else math.exp(min(loss, 700.0))


def plain(value):
    """What JSON can hold, strictly: a number that is not finite becomes null, anything unknown its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def flat(values: dict, prefix: str = "") -> dict:
    """Nested keys joined by slashes, as wandb groups them."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


def write_json(path: Path, values: dict) -> None:
    """Atomically: a reader finds the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(plain(values), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def stays(line: bytes, step: int) -> bool:
    """Is this line of metrics.jsonl whole, and not from after `step`? Test results come again."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return False
    if not isinstance(values, dict):
        return False
    kind = values.get("kind")
    return kind != "test" and (kind not in ("train", "valid") or values.get("step", 0) <= step)


def cut_back(path: Path, step: int, stays: Callable[[bytes, int], bool] = stays) -> int:
    """Drop from a metrics file the lines that do not stay, so that a resumed run may write them again.

    Returns how many lines were dropped. The file is replaced in one move.
    """
    if not path.exists():
        return 0
    partial, dropped = path.with_name(path.name + ".partial"), 0
    with open(path, "rb") as old, open(partial, "wb") as new:
        for line in old:
            if stays(line, step):
                new.write(line)
            else:
                dropped += 1
        new.flush()
        os.fsync(new.fileno())
    os.replace(partial, path)
    return dropped


def file_handler(path: Path) -> logging.Handler:
    return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")


# --------------------------------------------------------------------------- wandb


class WandbSink:
    """wandb in a thread of its own, fed through a queue: whatever happens to it, training does not wait.

    The run's id lies in the run folder, so that a resumed run continues the same one. After the first failure
    there is one warning, and silence.
    """

    def __init__(self, run_dir: Path, config: WandbConfig, run_config: dict):
        self._run_dir, self._config, self._run_config = run_dir, config, run_config
        self._queue: queue.Queue = queue.Queue(WANDB_QUEUE)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: dict, step: int | None) -> None:
        self._put(lambda run: None if step is not None and step < run.starting_step else run.log(values, step=step))

    def summary(self, values: dict) -> None:
        self._put(lambda run: run.summary.update(values))

    def close(self, exit_code: int) -> None:
        """Wait for what is still to be sent, WANDB_PATIENCE seconds at most."""
        self._put(lambda run: run.finish(exit_code=exit_code))
        self._put(None)
        self._thread.join(WANDB_PATIENCE)
        if self._thread.is_alive():
            self._fail("it did not finish in time (`wandb sync` sends what it has stored)")
            for pid in children_named("wandb-core"):  # else it, or wandb's own exit hook, would hold this process
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._thread.join(5)
        atexit.unregister(self.close)

    def _put(self, call) -> None:
        if not self._failed:
            try:
                self._queue.put_nowait(call)
            except queue.Full:
                self._fail("it takes nothing any more")

    def _work(self) -> None:
        wandb = None
        # Reports about wandb's own errors would hold this process for ten seconds more where no server answers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb

            run = self._init(wandb)
            # Before wandb's own hook, which may wait for a server for ever.
            atexit.register(self.close, 1)
            while (call := self._queue.get()) is not None:
                call(run)
        except BaseException as error:  # also SystemExit, which wandb raises when its service fails
            self._fail(f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": "))
        with contextlib.suppress(BaseException):
            wandb.teardown()  # ends its service and takes its exit hook away

    def _init(self, wandb):
        config, run_dir = self._config, self._run_dir
        quiet = wandb.Settings(init_timeout=WANDB_PATIENCE, silent=True, console="off")
        wandb.setup(quiet)  # silent: no prompt for a key, nothing between the progress bar's lines
        run = wandb.init(
            mode=config.mode.value,
            dir=str(run_dir),
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            job_type=config.job_type,
            name=config.name or f"{self._run_config['name']}-{run_dir.name}",
            config=self._run_config,
            id=run_id(run_dir / "wandb_id"),
            resume="allow",
            settings=quiet,
        )
        log.info("wandb: %s", getattr(run, "url", None) or f"{config.mode.value}, {run_dir / 'wandb'}")
        return run

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning("wandb: %s; the run goes on without it, metrics.jsonl holds everything", reason)


def run_id(path: Path) -> str:
    """The wandb id in this file, or a new one that is written there."""
    with contextlib.suppress(FileNotFoundError):
        if stored := path.read_text().strip():
            return stored
    path.write_text(f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()


def children_named(name: str) -> list[int]:
    """Process ids of this process' own children of that name (Linux; elsewhere none)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            head, _, tail = stat.read_text().rpartition(")")
            if int(tail.split()[1]) == os.getpid() and head.partition("(")[2] == name:
                found.append(int(stat.parent.name))
    return found
