"""A rank that SLURM started: preemption and requeue, termination, and its claim on the run folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError, error_line
from txl.launch.choose_checkpoint import newest_checkpoint
from txl.launch.rank import is_training, rank_main
from txl.launch.slurm_environment import adopt_slurm_environment
from txl.plan.run_plan import run_folder
from txl.system.process_exit import BAD_CONFIGURATION, PREEMPTED, TERMINATED, leave, leave_once_noted

WAIT_FOR_SLURM = 600  # seconds that a terminated rank waits for SLURM to end it


def slurm_rank_main(config: RunConfig | EvaluateConfig, submitted: bool = False) -> int:
    """Be one task of a SLURM step: rank_main, and what SLURM needs around it.

    Ends the process itself unless all is well: Hydra's and submitit's code above would report success.

    Args:
        config: What to run.
        submitted: The run folder was written by whoever submitted the job.

    Returns:
        0; any other exit code ends the process here.
    """
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler, if submitit started this process
    adopt_slurm_environment()
    is_main, attempt = os.environ["RANK"] == "0", int(os.environ.get("SLURM_RESTART_COUNT", 0))
    claim = None
    try:
        if isinstance(config, RunConfig) and is_training(config):
            if attempt:
                config, submitted = replace(config, resume=resume_after_requeue(config)), True
            if is_main and not config.debug:
                claim = Attempt(Path(run_folder(config)), attempt)
        code = rank_main(config, submitted=submitted, before_save=claim)
    except ConfigError as error:
        if is_main:  # all ranks failed for the same reason
            print(error_line(error), file=sys.stderr, flush=True)
        os._exit(BAD_CONFIGURATION)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if code == PREEMPTED and callable(requeue):
        if is_main:
            requeue(signal.SIGUSR2, None)  # scontrol requeue: the same job, the same folder; does not return
        leave(0)
    if code == TERMINATED:
        wait_for_slurm(is_main)
    if code:
        leave(code)
    leave_once_noted()
    return 0


def resume_after_requeue(config: RunConfig) -> str:
    """`resume` of a requeued attempt: the run's own newest checkpoint, or what the first attempt began from."""
    if config.resume not in (None, "auto") and newest_checkpoint(Path(run_folder(config))) is None:
        return config.resume
    return "auto"


def wait_for_slurm(is_main: bool) -> None:
    """After SIGTERM. A cancelled job ends now; a preempted job that ended by itself would not be requeued."""
    if is_main:
        show = ["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            shown = subprocess.run(show, capture_output=True, text=True, timeout=20).stdout
            if "JobState=CANCELLED" in shown:
                leave(TERMINATED)
    print("SLURM terminates this job: a checkpoint is saved, waiting until SLURM ends the process", flush=True)
    time.sleep(WAIT_FOR_SLURM)


class Attempt:
    """Rank 0's claim on the run folder, called before each checkpoint.

    A lost node may continue an attempt of the job that SLURM has restarted elsewhere. Then this ends the process, which
    is no longer the newest attempt.
    """

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
