"""Weights & Biases, in a thread of its own: tracking=wandb."""

import atexit
import contextlib
import logging
import os
import queue
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from txl.files import flatten, json_values, short_path
from txl.system.process_exit import PREEMPTED, STOP_SIGNALS
from txl.tracking.sinks import TrackedRun, describe_end, series_name

log = logging.getLogger(__name__)


WANDB_PATIENCE = 25.0  # seconds that its start and its end may take
CREDENTIALS = re.compile("SLURM_.*(JWT|TOKEN|SECRET|PASSW|KEY)")  # names of variables
REPLAY_PATIENCE = 600.0  # the same of a finished run, which nobody waits for
WANDB_QUEUE = 10_000  # calls that may wait while it starts or is slow


class WandbSink:
    """Calls wandb from a thread that is fed through a queue, so that training never waits for it.

    The run's id is stored in the run folder: a resumed run continues the same wandb run. After the first failure there
    is one warning, and nothing more is sent.
    """

    essential = False

    def __init__(self, folder: Path, run: TrackedRun):
        self._folder, self._options, self._settings = folder, run.options.wandb, run.settings
        self._metric = run.metric
        self._queue: queue.Queue[Callable[[Any], object] | None] = queue.Queue(WANDB_QUEUE)
        self.failed = False  # it has stopped sending
        self._live = run.live
        self._tokens: int | None = None  # trained on so far
        self._thread: threading.Thread | None = None

    def rewind(self, step: int) -> None:
        """See Sink. wandb cannot drop records: steps that it has already are not sent again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._tokens = values.get("tokens_seen", self._tokens)
        named = {series_name(kind, key): value for key, value in values.items()}
        named |= {"step": step} if self._tokens is None else {"step": step, "tokens": self._tokens}
        if kind == "test":  # the tested weights may be older than the last step, and wandb accepts no earlier step
            self._put(lambda run: run.log(named))
        else:
            self._put(lambda run: step < run.starting_step or run.log(named, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._put(lambda run: run.summary.update(flatten(json_values(dict(values)), "/")))

    def sync(self) -> None:
        """See Sink. The records are sent, not kept."""

    def close(self, exit_code: int) -> None:
        """See Sink. Waits at most WANDB_PATIENCE seconds for what is still to be sent."""
        if self._thread is None:
            return
        if self._options.alerts:
            end, name = describe_end(exit_code), f"{self._settings['name']} {short_path(self._folder)}"
            level = "INFO" if exit_code in (0, PREEMPTED) else "ERROR"
            self._put(lambda run: run.alert(title=f"Run {end}", text=f"{name}: exit code {exit_code}", level=level))
        self._put(lambda run: run.finish(exit_code=exit_code))
        self._put(None)
        self._thread.join(WANDB_PATIENCE if self._live else REPLAY_PATIENCE)
        if self._thread.is_alive():
            self._fail("it did not finish in time (`wandb sync` sends what it has stored)")
            for pid in children_named("wandb-core"):  # its exit hook would wait for this child
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._thread.join(5)
        atexit.unregister(self.close)

    def _put(self, call: Callable[[Any], object] | None) -> None:
        if not self.failed:
            try:
                self._queue.put(call, block=not self._live, timeout=REPLAY_PATIENCE)
            except queue.Full:
                self._fail("its queue is full")

    def _work(self) -> None:
        """The thread: start wandb, then make the calls from the queue."""
        wandb: Any = None
        # SLURM and a terminal send stop signals to every process of a run. wandb's service would die of one that comes
        # before it can handle signals. It inherits from this thread that they are held back until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # If no server answers, wandb's reports about its own errors would delay the end of this process by ten seconds.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb

            run = self._init(wandb)
            # This hook runs before wandb's own exit hook, which may wait for a server without limit.
            atexit.register(self.close, 1)
            while (call := self._queue.get()) is not None:
                call(run)
        except BaseException as error:  # also SystemExit, which wandb raises when its service fails
            self._fail(f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": "))
        with contextlib.suppress(BaseException):
            wandb.teardown()  # ends its service and removes its exit hook

    def _init(self, wandb: Any) -> Any:
        options, folder = self._options, self._folder
        quiet = wandb.Settings(init_timeout=WANDB_PATIENCE, silent=True, console="off")
        with without_credentials():
            wandb.setup(quiet)  # silent: it asks for no key and prints nothing between the progress bar's lines
            run = self._init_run(wandb, quiet)
        self._define_curves(run)
        log.info("wandb: %s", getattr(run, "url", None) or f"{options.mode.value}, {folder / 'wandb'}")
        return run

    def _init_run(self, wandb: Any, quiet: Any) -> Any:
        options, folder = self._options, self._folder
        return wandb.init(
            mode=options.mode.value,
            dir=str(folder),
            project=options.project,
            entity=options.entity,
            group=options.group,
            tags=list(options.tags),
            job_type=options.job_type,
            name=options.name or f"{self._settings['name']}-{folder.name}",
            config=flatten(self._settings),
            id=stored_wandb_id(folder / "wandb_id"),
            resume="allow",
            settings=quiet,
        )

    def _define_curves(self, run: Any) -> None:
        """Curves are drawn against `step` (or `tokens`, as chosen on the page); losses keep their lowest and last."""
        for axis in ("step", "tokens"):
            run.define_metric(axis, hidden=True)
        for prefix in ("train", "valid", "test", "perf"):
            run.define_metric(f"{prefix}/*", step_metric="step")
        for kind in ("train", "valid"):
            for name in ("loss", self._metric):
                run.define_metric(f"{kind}/{name}", step_metric="step", summary="min,last")

    def _fail(self, reason: str) -> None:
        if not self.failed:
            self.failed = True
            log.warning("wandb: %s; the run goes on without it, metrics.jsonl holds everything", reason)


@contextlib.contextmanager
def without_credentials() -> Iterator[None]:
    """Hide SLURM's credentials from wandb, which stores all variables SLURM_* with a run."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if CREDENTIALS.match(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def stored_wandb_id(path: Path) -> str:
    """The wandb id in this file; if there is none, a new one that is written there."""
    with contextlib.suppress(FileNotFoundError):
        if stored := path.read_text().strip():
            return stored
    path.write_text(f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()


def children_named(name: str) -> list[int]:
    """The process ids of this process' children with that name (on Linux; none elsewhere)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            head, _, tail = stat.read_text().rpartition(")")
            if int(tail.split()[1]) == os.getpid() and head.partition("(")[2] == name:
                found.append(int(stat.parent.name))
    return found
