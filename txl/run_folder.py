"""The run folder before the start: its lock, the checkpoint to go on from, the configuration, a copy of the code."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import yaml

from txl.choices import Then
from txl.composition import from_dict, to_dict
from txl.config import BenchmarkConfig, RunConfig
from txl.data import Corpus, check_size, open_corpus
from txl.errors import ConfigError
from txl.plan import Plan, make_plan
from txl.run_identity import resume_differences
from txl.sentences import training_stream

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Start:
    """What `prepare` decided: which plan to run, and from which checkpoint."""

    plan: Plan
    checkpoint: str | None
    finished: bool = False


@contextlib.contextmanager
def prepare(config: RunConfig, ours: bool = False):
    """Check everything that can be checked, then make the run folder and hold its lock: yields (Start, lock).

    With debug=true there is no folder, and no lock.

    `ours`: the folder was written for this start already, by whoever submitted it or by an attempt before this one.
    """
    if config.init_from is not None:  # before a large text is encoded
        run_dir = Path(make_plan(config).run_dir)
        check_source(config) if config.debug else find_checkpoint(config, run_dir, ours)
    corpus = open_corpus(config.data)
    plan = make_plan(config, len(corpus.vocab))
    check_splits(config, corpus)
    if config.debug:
        yield Start(plan, None), None
        return
    run_dir = Path(plan.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with held_lock(run_dir, insist=not ours) as lock:
        checkpoint, finished = find_checkpoint(config, run_dir, ours)
        if checkpoint:
            check_same_text(config, corpus, checkpoint)
        if checkpoint and not finished:
            announce(checkpoint, plan.world_size)
        if not finished and not ours:
            write_run_folder(config, plan, run_dir)
        yield Start(plan, checkpoint, finished), lock


@contextlib.contextmanager
def held_lock(run_dir: Path, insist: bool = True):
    """Nobody else may write in a run folder in use. The lock ends with the last process that holds it.

    `insist=False`: a lost node may hold it still; go on without (rank.Attempt keeps such a process from writing).
    """
    with open(run_dir / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not insist:
                yield lock
                return
            lock.seek(0)
            raise ConfigError(
                f"run_dir={run_dir} is in use by {lock.read() or 'another process'}; "
                "wait for it, stop it, or choose another run_dir"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield lock


def in_use(run_dir: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if not (run_dir / ".lock").exists():
        return False
    with open(run_dir / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def find_checkpoint(config: RunConfig, run_dir: Path, ours: bool = False) -> tuple[str | None, bool]:
    """Where to continue (None: at the beginning), and whether the run is finished already."""
    resume, begun = config.resume, (run_dir / "config.yaml").exists() and not ours
    taken = f"run_dir={run_dir} holds a run already; resume=auto continues it, another name or run_dir keeps both"
    if resume is None:
        if begun:
            raise ConfigError(taken)
        check_source(config)
        return None, False
    from txl import checkpoint as ckpt  # imports torch, which a fresh run's mistakes need not wait for
    from txl.distributed import World

    if resume == "auto":
        found = ckpt.Checkpoints(run_dir / "checkpoints", World()).newest()
        if found is None:
            check_source(config)
            return None, False
    else:
        found = ckpt.resolve(resume, "resume")
        if begun and run_dir.resolve() not in found.parents:
            raise ConfigError(f"resume={resume} is of another run, and {taken}")
        ckpt.verify(found)
    check_resume(config, found)
    return str(found), is_finished(config, run_dir, found)


def check_source(config: RunConfig) -> None:
    """The checkpoint that a run begins from; one that continues has no more need of it."""
    if config.init_from is not None:
        from txl import fine_tuning  # imports torch

        fine_tuning.check_source(config)


def check_resume(config: RunConfig, checkpoint: Path) -> None:
    """The same mathematics, else ConfigError."""
    if not (checkpoint / "state.json").exists():
        raise ConfigError(f"resume={config.resume} holds weights alone, no state of a training that could go on")
    differences = resume_differences(json.loads((checkpoint / "run.json").read_text()), to_dict(config))
    if differences:
        raise ConfigError(
            f"resume={config.resume}: {'; '.join(differences)}: a resumed run may not change the mathematics; "
            "set it back, or start a new run (another run_dir or name)"
        )


def check_same_text(config: RunConfig, corpus: Corpus, checkpoint: str) -> None:
    saved = json.loads((Path(checkpoint) / "state.json").read_text())
    for what, now in (("vocabulary", corpus.vocab.fingerprint), ("data", corpus.fingerprint)):
        if saved[what] != now:
            raise ConfigError(
                f"resume={config.resume}: was trained on another {what} than data={corpus.name} has now; point data.* "
                "at the same files, or start a new run (another run_dir or name)"
            )


def check_splits(config: RunConfig, corpus: Corpus) -> None:
    """Does every split that the run will read, hours later perhaps, fill a segment?"""
    read = [("train", "train.")]
    if config.valid.enabled:
        read += [("valid", "valid."), ("test", "valid.")]
    if config.then is Then.evaluate:
        read.append(("test" if "test" in corpus.splits else "valid", "evaluation."))
    for split, section in read:
        lengths = getattr(config, section.removesuffix("."))
        if split in corpus.splits:
            check_size(corpus.tokens(split), lengths.batch_size, lengths.tgt_len, section)
    training_stream(corpus, config.train, config.seed)
    if config.train.target_perplexity is not None and "test" not in corpus.splits:
        raise ConfigError(
            f"train.target_perplexity={config.train.target_perplexity:g} is of the test split, and data={corpus.name} "
            "has none; give data.test, or leave it out"
        )


def announce(checkpoint: str, world_size: int) -> None:
    log.info("going on from %s", checkpoint)
    before = json.loads((Path(checkpoint) / "manifest.json").read_text())["world_size"]
    if before != world_size:
        said = "%d processes instead of %d: memories are dealt anew, but dropout draws other numbers"
        log.warning(said, world_size, before)


def is_finished(config: RunConfig, run_dir: Path, checkpoint: Path) -> bool:
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    return step >= config.train.max_step and (run_dir / "summary.json").exists()


def first_to_fail(run_dir: Path) -> int | None:
    """The rank that wrote its traceback first: the others failed because it was gone."""
    errors = sorted(run_dir.glob("logs/rank_*.error"), key=lambda path: path.stat().st_mtime_ns)
    return int(errors[0].stem.removeprefix("rank_")) if errors else None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """By name, without reading it: an answer without torch. The ranks verify what they load."""
    found = [path.parent for path in run_dir.glob("checkpoints/step_*/manifest.json")]
    return max(found, key=lambda path: int(path.name.removeprefix("step_")), default=None)


def write_run_folder(config: RunConfig, plan: Plan, run_dir: Path, code: bool = True) -> None:
    """config.yaml, plan.json and a copy of the code that runs."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    (run_dir / "plan.json").write_text(json.dumps(plan.to_dict(), indent=1) + "\n")
    if code:
        copy_code(run_dir / "code")


def read_config(run_dir: Path) -> RunConfig:
    """The configuration that `write_run_folder` left there: of a training, or of a benchmark."""
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    return from_dict(values, BenchmarkConfig if "suite" in values else RunConfig)


def folder_of(config: RunConfig, plan: Plan) -> Path:
    """Where a job writes: checks and benchmarks are no trainings, and have folders beside theirs."""
    if isinstance(config, BenchmarkConfig):
        return Path(f"{plan.run_dir}-benchmark-{plan.nodes}x{plan.gpus_per_node}")
    return Path(plan.run_dir + ("-preflight" if config.preflight else ""))


def copy_code(folder: Path) -> None:
    """What the ranks of a job import: editing the checkout later changes no queued job."""
    for part in ("txl", "conf"):
        ignore = shutil.ignore_patterns("__pycache__", "site")
        shutil.copytree(PROJECT / part, folder / part, ignore=ignore, dirs_exist_ok=True)
    for script in PROJECT.glob("*.py"):
        shutil.copy2(script, folder)
