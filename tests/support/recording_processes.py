"""Processes that record a made-up training.

`python -m tests.support.recording_processes RUN_DIR MODE ACT STEPS RESUME_STEP` is such a process: MODE is that of
wandb; ACT is what befalls it (`kill` or `stop` its wandb service, `signal` it from its first moment on, `raise` an
error, `-` nothing).
"""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support.tracked_runs import STEP, WANDB
from txl.config.geometry import Geometry
from txl.config.tracking import TrackingConfig, WandbConfig, WandbMode
from txl.tracking import wandb_sink
from txl.tracking.sinks import TrackedRun
from txl.tracking.tracker import open_tracker

PROJECT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return kept | {"PYTHONPATH": str(PROJECT), "TERM": "xterm"} | extra


def command_that_records(run_dir: Path, mode: str = "none", act: str = "-", steps: int = 30, resume_step: int = 0):
    run_dir.mkdir(exist_ok=True)
    module = [sys.executable, "-m", "tests.support.recording_processes"]
    return [*module, str(run_dir), mode, act, str(steps), str(resume_step)]


def record_in_process(run_dir: Path, *arguments, env: dict[str, str] | None = None, **options) -> tuple[int, str]:
    """Exit code and output of a process that records."""
    command = command_that_records(run_dir, *arguments, **options)
    done = subprocess.run(command, env=environment(**env or {}), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def run_in_terminal(command: list[str], env: dict[str, str]) -> tuple[str, int]:
    """Everything that a program writes to a terminal, and its exit code."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(command, env=env, stdout=terminal, stderr=terminal)
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(main, 65536):
            written += chunk
    except OSError:  # Linux raises this when the other side is closed
        pass
    os.close(main)
    return written.decode(), process.wait(timeout=60)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def signal_children(log: Path) -> None:
    """Send SIGUSR2 to every process that this one starts, again and again until wandb is there."""
    while "wandb: " not in log.read_text():
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
                print("signalled")


def main(run_dir: Path, mode: str, act: str, steps: int, resume_step: int) -> None:
    wandb_sink.WANDB_PATIENCE = float(os.environ.get("PATIENCE", 25))
    options = TrackingConfig(WandbConfig(mode=WandbMode[mode], **WANDB), environment=False)
    settings = {"name": "demo", "seed": 1, "model": {"n_layer": 4}}
    tracker = open_tracker(TrackedRun(options, settings, "ppl", resume_step + steps, 5000), run_dir, rank=0)
    tracker.rewind(resume_step)
    log = run_dir / "train.log"
    if act == "signal":
        threading.Thread(target=signal_children, args=(log,), daemon=True).start()
    for step in range(resume_step + 1, resume_step + steps + 1):
        time.sleep(0.002)
        if step == resume_step + steps // 2 and act in ("kill", "stop"):
            wait_until(lambda: "wandb: offline" in log.read_text())
            for pid in wandb_sink.children_named("wandb-core"):
                os.kill(pid, signal.SIGKILL if act == "kill" else signal.SIGSTOP)
                print("wandb-core is gone")
        tracker.progress(step)
        values = dict(STEP, epoch=1, batch=step, n_batches=9, lr=0.01, ms_per_batch=1.0, tokens_per_second=9.0)
        tracker.train_step(step=step, **values | dict(loss=3.0, grad_norm=1.0, tokens_seen=step))
    result = dict(seconds=1.0, loss=2.5, tokens=9, geometry=Geometry(64, 64), batch_size=4)
    tracker.validation(step=step, is_best=True, **result)
    if act == "raise":
        wait_until(lambda: "wandb: offline" in log.read_text())
        raise RuntimeError("the training broke")
    tracker.test(split="test", step=step, **result)
    tracker.summary({"train_seconds": 60.0, "test": {"loss": 2.5}})
    began = time.monotonic()
    tracker.close()
    print(f"closed in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
