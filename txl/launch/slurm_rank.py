"""A rank that SLURM started: requeue, termination, and its claim on the run folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.launch.rank import BAD_CONFIGURATION, join
from txl.launch.slurm_environment import slurm_variables
from txl.plan.run_plan import make_plan
from txl.system.process_exit import leave, leave_once_noted

PREEMPTED = 128 + signal.SIGUSR2


TERMINATED = 128 + signal.SIGTERM


LAST_BREATH = 600  # seconds that a terminated rank waits for SLURM to end it


# --------------------------------------------------------------------------- under SLURM


def started_by_slurm(config: RunConfig, ours: bool = False) -> int:
    """A task of a SLURM step. Ends the process itself unless all is well: what is left of Hydra and submitit above
    would report success."""
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, where it started us
    os.environ.update(slurm_variables(os.environ))
    rank = int(os.environ["RANK"])
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if attempt:
        config.resume, ours = resume_after_requeue(config), True
    try:
        claims = rank == 0 and not config.debug
        fence = Attempt(Path(make_plan(config).run_dir), attempt) if claims else None
        code = join(config, ours, fence)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(BAD_CONFIGURATION)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if code == PREEMPTED and callable(requeue):
        if rank == 0:
            requeue(signal.SIGUSR2, None)  # scontrol requeue: the same job, the same folder; does not return
        leave(0)
    if code == TERMINATED:
        wait_for_the_end(rank)
    if code:
        leave(code)
    leave_once_noted()
    return 0


def resume_after_requeue(config: RunConfig) -> str:
    """The run's own newest checkpoint; before there is one, what the first attempt began from."""
    from txl.launch.choose_checkpoint import newest_checkpoint

    if config.resume not in (None, "auto") and newest_checkpoint(Path(make_plan(config).run_dir)) is None:
        return config.resume
    return "auto"


def wait_for_the_end(rank: int) -> None:
    """After SIGTERM: a cancelled job ends now; a preempted one that ended by itself would not be requeued."""
    if rank == 0:
        show = ["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            shown = subprocess.run(show, capture_output=True, text=True, timeout=20).stdout
            if "JobState=CANCELLED" in shown:
                leave(TERMINATED)
    print("terminated by SLURM: saved, waiting for its next word", flush=True)
    time.sleep(LAST_BREATH)


class Attempt:
    """Rank 0's claim on the run folder. A lost node may go on with an attempt that SLURM has restarted elsewhere:
    called before each checkpoint, this ends the process that is no longer the newest."""

    def __init__(self, run_dir: Path, number: int):
        self.file = run_dir / "slurm" / "attempts.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.mine = {
            "job": os.environ["SLURM_JOB_ID"],
            "attempt": number,
            "nodes": os.environ.get("SLURM_JOB_NODELIST"),
            "began": round(time.time(), 3),
        }
        with open(self.file, "a") as file:
            file.write(json.dumps(self.mine) + "\n")

    def __call__(self) -> None:
        if json.loads(self.file.read_text().splitlines()[-1]) != self.mine:
            print("another attempt of this job has taken over: this one ends here", file=sys.stderr, flush=True)
            os._exit(1)
