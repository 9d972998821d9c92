"""Submitting to SLURM through submitit, and waiting for what was submitted.

A job is one run folder: what its ranks run is the configuration that was validated and the code that was copied there.

    RUN_DIR/slurm/job.json         {"job": "17", "log": ...}; an array's element: "17_2"
    RUN_DIR/slurm/attempts.jsonl   one line per start of the job: a requeued one has several
    RUN_DIR/slurm/17_3_log.out     what rank 3 printed, all attempts in one
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from txl.config import RunConfig
from txl.data import encoded_vocab_size, open_corpus
from txl.errors import ConfigError
from txl.plan import Plan, known_vocab_size, make_plan
from txl.run_folder import (
    check_resume,
    check_source,
    check_splits,
    copy_code,
    find_checkpoint,
    first_to_fail,
    in_use,
    is_finished,
    newest_checkpoint,
    read_config,
    write_run_folder,
)
from txl.sources import find_files, find_vocabulary

POLL_SECONDS = 1.0
LOOKS = 3  # that must find a job at its end
ENCODED_HERE = 8 << 20  # bytes of text
ENDED = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY".split()
OUR_OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SITE_WIDE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


# A task's first words. A signal that comes before submitit listens would kill the job. While Python starts it is
# ignored (a time limit is never that near, and who preempts will ask again); then it is kept for `Job`.
DEAF = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh"]
START = """import os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: os.environ.update({early}="1"))
sys.path[0] = {code!r}
from submitit.core.submission import submitit_main
submitit_main()"""
EARLY_SIGNAL = "TXL_EARLY_SIGNAL"


class Job:
    """What submitit carries to the nodes: the name of a run folder."""

    def __init__(self, run_dir: str):
        self.run_dir = run_dir

    def __call__(self) -> int:
        if os.environ.pop(EARLY_SIGNAL, None):
            os.kill(os.getpid(), signal.SIGUSR2)
        config = read_config(Path(self.run_dir))
        if config.preflight:
            from txl.preflight import preflight

            return preflight(config, Path(self.run_dir))
        from txl.rank import started_by_slurm

        return started_by_slurm(config, ours=True)

    def checkpoint(self):
        """Called by submitit when a signal announces the end: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Submitted:
    """One run folder's job."""

    run_dir: Path
    job: str
    log: Path  # of rank 0

    @staticmethod
    def of(run_dir: Path) -> "Submitted | None":
        with contextlib.suppress(OSError, ValueError, KeyError):
            values = json.loads((run_dir / "slurm" / "job.json").read_text())
            return Submitted(run_dir, values["job"], Path(values["log"]))
        return None


# --------------------------------------------------------------------------- submitting


def submit(configs: list[RunConfig], parallel: int | None = None) -> list[Submitted]:
    """Submit each run that has something left to do; as one array (per shape of job) where `parallel` limits it.

    Every run is checked before the first is submitted, and a refused job leaves no run folder behind.
    """
    todo = []
    for config in configs:
        plan = make_plan(config, check_data(config))
        if parallel is None:
            print(plan, flush=True)
        run_dir = Path(os.path.abspath(plan.run_dir + ("-preflight" if config.preflight else "")))
        if has_work(config, run_dir):
            todo.append((config, plan, run_dir))
    fresh = [run_dir for *_, run_dir in todo if not run_dir.exists()]
    jobs = []
    try:
        groups = {}
        for point in todo:
            key = repr(parameters(*point[:2])) if parallel else str(point[2])
            groups.setdefault(key, []).append(point)
        for points in groups.values():
            jobs += submit_together(points, parallel)
    except ConfigError:
        for run_dir in fresh:
            if Submitted.of(run_dir) is None:
                shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return jobs


def check_data(config: RunConfig) -> int | None:
    """What of the data can be checked at once, here; returns the vocabulary's size if it is known."""
    files = find_files(config.data)
    find_vocabulary(config.data)
    size = sum(path.stat().st_size for paths in files.values() for path in paths)
    if encoded_vocab_size(config.data) is None and size > ENCODED_HERE:
        return known_vocab_size(config.data)  # a login node is no place for it: rank 0 will encode it
    corpus = open_corpus(config.data)
    check_splits(config, corpus)
    return len(corpus.vocab)


def has_work(config: RunConfig, run_dir: Path) -> bool:
    """Whether a job must be submitted; ConfigError where it must not. Torch is not needed to know."""
    if (run_dir / ".lock").exists() and in_use(run_dir):
        raise ConfigError(f"run_dir={run_dir} is in use by {(run_dir / '.lock').read_text()}; wait for it or stop it")
    queued = Submitted.of(run_dir)
    state = state_of(queued.job) if queued else None
    if state is not None and state not in ENDED:
        if config.resume == "auto":
            print(f"{run_dir} is {state} as job {queued.job}: left alone")
            return False
        raise ConfigError(f"run_dir={run_dir} is in use by job {queued.job} ({state}); scancel {queued.job}, or wait")
    if config.preflight:
        return True
    if config.resume == "auto":
        found = newest_checkpoint(run_dir)
        if found is not None:
            check_resume(config, found)
            if is_finished(config, run_dir, found):
                print(f"{run_dir} is finished: nothing to do (raise train.max_step to go on)")
                return False
            return True
        check_source(config)
    else:
        find_checkpoint(config, run_dir)
    return True


def submit_together(points: list[tuple[RunConfig, Plan, Path]], parallel: int | None) -> list[Submitted]:
    """One job, or one array of them."""
    config, plan, first = points[0]
    is_array = len(points) > 1
    folder = first.parent / "arrays" / time.strftime("%Y%m%d-%H%M%S") if is_array else first
    for point in points:
        write_run_folder(*point, code=False)
        (point[2] / "slurm").mkdir(exist_ok=True)
    copy_code(folder / "code")
    executor = make_executor(folder / "slurm", folder / "code", config, plan, parallel)
    try:
        with outside_of_any_job():
            jobs = executor.submit_array([Job(str(run_dir)) for *_, run_dir in points])
    except Exception as error:  # submitit wraps what sbatch said in types of its own
        raise ConfigError(refusal(str(error), config)) from None
    submitted = []
    for (*_, run_dir), job in zip(points, jobs, strict=True):
        one = Submitted(run_dir, job.job_id, folder / "slurm" / f"{job.job_id}_0_log.out")
        record = {"job": one.job, "log": str(one.log), "submitted": time.time()}
        (run_dir / "slurm" / "job.json").write_text(json.dumps(record) + "\n")
        submitted.append(one)
    return submitted


def refusal(message: str, config: RunConfig) -> str:
    said = re.search(r"sbatch: error: (?!Batch job submission failed)(.*)|Batch job submission failed: (.*)", message)
    text = next(filter(None, said.groups())) if said else message.strip().partition("\n")[0]
    chosen = " ".join(
        f"cluster.{key}={value}"
        for key, value in vars(config.cluster).items()
        if key in ("partition", "account", "qos", "constraint") and value
    )
    return f"cluster=slurm {chosen}: SLURM refused the job: {text}; correct cluster.* (sinfo lists the partitions)"


def make_executor(folder: Path, code: Path, config: RunConfig, plan: Plan, parallel: int | None):
    """submitit's SLURM executor, whose tasks import the copied code and nothing from the working directory."""
    if shutil.which("sbatch") is None:
        raise ConfigError("cluster=slurm needs sbatch, which is not here; submit on a login node, or use cluster=local")
    import submitit

    class Executor(submitit.SlurmExecutor):
        @property
        def _submitit_command_str(self) -> str:
            start = START.format(code=str(code), early=EARLY_SIGNAL)
            task = [*DEAF, config.cluster.python or sys.executable, "-u", "-c", start]
            return shlex.join([*task, str(self.folder)])

    executor = Executor(folder, max_num_timeout=config.cluster.max_timeouts)
    executor.update_parameters(**parameters(config, plan), **({"array_parallelism": parallel} if parallel else {}))
    return executor


def parameters(config: RunConfig, plan: Plan) -> dict:
    """What sbatch and srun are told."""
    cluster = config.cluster
    optional = {
        key: getattr(cluster, key)
        for key in ("partition", "account", "qos", "constraint", "cpus_per_task")
        if getattr(cluster, key) is not None
    }
    if cluster.mem_gb:
        optional["mem"] = f"{cluster.mem_gb}GB"
    further = dict(sbatch_flag(flag) for flag in cluster.sbatch)
    if config.hardware.gpus and "gres" not in further:
        optional["gpus_per_node"] = plan.gpus_per_node
    # One dead rank ends the job; a requeued attempt goes on in the same logs.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if cluster.cpus_per_task:
        srun.append(f"--cpus-per-task={cluster.cpus_per_task}")  # which srun no longer takes from sbatch
    if cluster.container:
        mounts = ",".join([f"{os.getcwd()}:{os.getcwd()}", *cluster.container_mounts])
        srun += [f"--container-image={cluster.container}", f"--container-mounts={mounts}"]
        srun.append(f"--container-workdir={os.getcwd()}")
    return optional | {
        "job_name": config.name,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.gpus_per_node,
        "time": cluster.minutes,
        "signal_delay_s": cluster.signal_delay,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own breaks some sites
        "setup": [*cluster.setup],
        "srun_args": [*srun, *cluster.srun],
        "additional_parameters": {"requeue": True} | further,
    }


def sbatch_flag(flag: str) -> tuple[str, str | bool]:
    """`--gres=gpu:16` -> ("gres", "gpu:16"); `--exclusive` -> ("exclusive", True)"""
    name, has_value, value = flag.removeprefix("--").partition("=")
    return name, value if has_value else True


def sbatch_script(config: RunConfig) -> str:
    """For dry_run=true: what would be submitted."""
    plan = make_plan(config)
    run_dir = Path(os.path.abspath(plan.run_dir))
    executor = make_executor(run_dir / "slurm", run_dir / "code", config, plan, None)
    return executor._make_submission_file_text(executor._submitit_command_str, "0")


@contextlib.contextmanager
def outside_of_any_job():
    """Submitting from inside an allocation must not hand its shape and CPU binding on to the new job."""
    before = dict(os.environ)
    for key in list(os.environ):
        inherited = key.startswith(("SLURM_", "SBATCH_")) and key not in SITE_WIDE and "SLURM_JOB_ID" in before
        if inherited or key in OUR_OWN or key.startswith("SUBMITIT_"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --------------------------------------------------------------------------- asking


def ask(*command: str) -> str | None:
    """Standard output; None where the program is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def controller_says(job: str) -> dict[str, str]:
    """JobState, ExitCode, Restarts, NodeList, ... while the controller remembers the job (five minutes, often)."""
    line = (ask("scontrol", "-o", "show", "job", job) or "").partition("\n")[0]
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def accounting_says(job: str) -> dict[str, str]:
    """State, ExitCode, NodeList where the site has accounting."""
    lines = (ask("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", job) or "").splitlines()
    for line in reversed(lines):
        fields = line.split("|")
        if fields[0] == job and len(fields) > 1:
            keys = ("JobID", "JobState", "ExitCode", "NodeList")
            return dict(zip(keys, fields, strict=False)) | {"JobState": fields[1].split()[0]}
    return {}


def state_of(job: str) -> str | None:
    """RUNNING, PENDING, FAILED, ...; None where nobody knows the job any more."""
    return (controller_says(job) or accounting_says(job)).get("JobState")


# --------------------------------------------------------------------------- waiting


def wait(jobs: list[Submitted]) -> int:
    """Follow rank 0's log, or of several jobs their states, to the end; returns the worst exit code."""
    states: dict[str, str] = {}
    codes: dict[str, int] = {}
    seen: dict[str, int] = {}
    tail = Tail(jobs[0].log) if len(jobs) == 1 else None
    try:
        while len(codes) < len(jobs):
            for one in jobs:
                if one.job not in codes:
                    watch(one, states, codes, seen, quiet=tail is not None)
            if tail:
                tail.show()
            if len(codes) < len(jobs):
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return interrupted([one.job for one in jobs if one.job not in codes])
    if tail:
        tail.show()
    for one in jobs:
        conclude(one, states[one.job], codes[one.job])
    return max(codes.values())


def watch(one: Submitted, states: dict[str, str], codes: dict[str, int], seen: dict[str, int], quiet: bool) -> None:
    """Ask once for a job; notes its state, and its exit code when it has ended."""
    said = controller_says(one.job) or accounting_says(one.job)
    state = said.get("JobState")
    if state is None and ask("scontrol", "ping") is None:
        return  # the controller is away: it will be back
    if state is None:
        done = (one.run_dir / "summary.json").exists()
        state, said = ("COMPLETED", {}) if done else ("FAILED", {"ExitCode": "1:0"})
    if state != states.get(one.job):
        states[one.job] = state
        if not quiet or state != "RUNNING":
            reason = f" ({said['Reason']})" if said.get("Reason", "None") != "None" else ""
            print(f"job {one.job} {state}{reason}", flush=True)
    seen[one.job] = seen.get(one.job, 0) + 1 if state in ENDED else 0
    # A job that SLURM is about to requeue may show another end for a moment.
    if state == "COMPLETED" or seen[one.job] == LOOKS:
        status, _, number = said.get("ExitCode", "1:0").partition(":")
        code = int(status) or (128 + int(number or 0) if int(number or 0) else 0)
        codes[one.job] = 0 if state == "COMPLETED" else code or 1


def conclude(one: Submitted, state: str, code: int) -> None:
    if state == "COMPLETED":
        return
    print(f"job {one.job} {state} (exit code {code}): {blame(one)}", file=sys.stderr, flush=True)


def blame(one: Submitted) -> str:
    """The rank that failed first, its log, and what it said."""
    text = one.log.read_text(errors="replace") if one.log.exists() else ""
    attempt = text[text.rfind("Starting with JobEnvironment") :]
    first = re.search(r"srun: error: (\S+): tasks? (\d+)\S*: (.*)", attempt)
    rank = first_to_fail(one.run_dir)
    if first and (rank is None or not (one.run_dir / "logs" / f"rank_{first[2]}.error").exists()):
        rank = int(first[2])  # killed without a word
    if rank is None:
        return f"see {one.log}"
    log = str(one.log).replace("_0_log.out", f"_{rank}_log.out")
    node = f" on {first[1]}: {first[3]}" if first and rank == int(first[2]) else ""
    detail = one.run_dir / "logs" / f"rank_{rank}.error"
    return f"rank {rank}{node}; {log}" + (f"\n{detail.read_text()}" if detail.exists() else "")


def interrupted(jobs: list[str]) -> int:
    """Ctrl-C in a waiting launcher."""
    names = " ".join(jobs)
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            if input(f"\nCancel job {names}? [y/N] ").strip().lower() in ("y", "yes"):
                ask("scancel", *jobs)
                print(f"cancelled: {names}")
                return 130
    print(f"left in the queue: {names} (scancel {names} ends them)", flush=True)
    return 130


class Tail:
    """What was added to a file since the last look."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def show(self) -> None:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            file.seek(self.position)
            added = file.read()
            self.position += len(added)
            sys.stdout.write(added.decode(errors="replace"))
            sys.stdout.flush()
