"""wandb, in a thread of its own."""

import atexit
import contextlib
import logging
import os
import queue
import signal
import threading
import uuid
from pathlib import Path

from txl.config.tracking import WandbConfig

log = logging.getLogger(__name__)


WANDB_PATIENCE = 25.0  # seconds, for its start and for its end


WANDB_QUEUE = 10_000  # lines that may wait while it starts or stalls


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
