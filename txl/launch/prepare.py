"""Everything that is decided before ranks start: plan, corpus, checkpoint to continue from, run folder, lock.

`prepare` decides it once. Ranks on this machine read it back from the run folder (`Prepared.read`), ranks under
torchrun and SLURM get it from rank 0.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from txl.checkpoint.find import MANIFEST, read_document
from txl.config.output_files import check_output_folder
from txl.config.schema import RunConfig, Then
from txl.data.batches import check_split_fills_segment
from txl.data.corpus import Corpus, open_corpus
from txl.data.sentence_batches import training_stream
from txl.errors import ConfigError
from txl.files import make_folder, write_json
from txl.launch.choose_checkpoint import check_init_from, check_not_begun, find_checkpoint
from txl.launch.disk_room import check_room
from txl.launch.run_folder import write_run_folder
from txl.launch.torch_build import check_torch_build
from txl.plan.checkpoint_size import checkpoint_bytes
from txl.plan.run_plan import Plan, make_plan, run_folder
from txl.system.run_lock import LOCK, held_lock

log = logging.getLogger(__name__)

# At least one of them is in every run folder, also after a crash of the machine.
RUN_FILES = {"config.yaml", "plan.json", "logs", "slurm", "checkpoints", "metrics.jsonl", LOCK}
WRITTEN = ("config.yaml", "plan.json", "metrics.jsonl", "summary.json", "environment.json", "train.log", "wandb_id")
START = "start.json"  # in the run folder: the checkpoint that its ranks continue from


@dataclass(frozen=True)
class Prepared:
    """What `prepare` decided. Everything after it reads this and decides nothing again."""

    plan: Plan
    checkpoint: str | None = None  # where to continue; None: at the beginning
    finished: bool = False  # the run has reached its last step already: nothing is left to do
    lock: IO[str] | None = None  # of the run folder; None with debug=true
    corpus: Corpus | None = None  # opened in this process; None in what another process prepared

    def write(self, folder: Path) -> None:
        """Write what ranks need beside config.yaml and plan.json."""
        write_json(folder / START, {"checkpoint": self.checkpoint})

    @staticmethod
    def read(folder: Path) -> "Prepared":
        """What our launcher prepared for its ranks."""
        plan = Plan(**json.loads((folder / "plan.json").read_text()))
        return Prepared(plan, json.loads((folder / START).read_text())["checkpoint"])

    def for_other_processes(self) -> "Prepared":
        """The same without what belongs to this process: its lock and its open files."""
        return replace(self, lock=None, corpus=None)


@contextlib.contextmanager
def prepare(config: RunConfig, submitted: bool = False) -> Iterator[Prepared]:
    """Check everything that can be checked, then make the run folder and hold its lock.

    With debug=true there is no run folder and no lock.

    Args:
        config: A training that was composed and checked.
        submitted: The run folder was written for this start already: by whoever submitted the job, or by an earlier
            attempt of the same job.

    Yields:
        What was decided; the lock is released at the end.

    Raises:
        ConfigError: If data, checkpoint or run folder do not fit the configuration.
    """
    run_dir = Path(run_folder(config))
    # What takes no time comes before a large text is encoded.
    if not config.debug:
        check_run_folder(config, run_dir, submitted)
    if config.init_from is not None:
        check_init_from(config) if config.debug else find_checkpoint(config, run_dir, submitted)
    if not submitted:
        check_torch_build(config)
    corpus = open_corpus(config.data)
    plan = make_plan(config, len(corpus.vocab), corpus.unknown)
    check_splits(config, corpus)
    if config.debug:
        yield Prepared(plan, corpus=corpus)
        return
    make_folder(run_dir)
    with held_lock(run_dir, insist=not submitted) as lock:
        checkpoint, finished = find_checkpoint(config, run_dir, submitted)
        if checkpoint:
            check_same_text(config, corpus, checkpoint)
        if not finished and plan.parameters is not None:
            check_room(config, run_dir, checkpoint_bytes(config, len(corpus.vocab), plan.parameters))
        if checkpoint and not finished:
            log_continuation(checkpoint, plan.world_size)
        if not finished and not submitted:
            write_run_folder(config, plan, run_dir)
        yield Prepared(plan, checkpoint, finished, lock, corpus)


# --------------------------------------------------------------------------- checks


def check_run_folder(config: RunConfig, run_dir: Path, submitted: bool) -> None:
    """Find out whether a run can be written to its folder, without making it: what follows may refuse the run.

    Raises:
        ConfigError: If the folder holds a run that `resume` does not continue, or files that are no run's, or if it
            cannot be written.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run_dir={run_dir} is a file; name a folder")
    there = set(os.listdir(run_dir)) if run_dir.is_dir() else set()
    if there and not there & RUN_FILES:
        raise ConfigError(f"run_dir={run_dir} holds files that are no run's ({min(there)}); name a new folder")
    refuse_what_is_no_file(run_dir)
    if config.resume is None and not submitted:
        check_not_begun(run_dir)
    check_output_folder("run_dir", run_dir)


def refuse_what_is_no_file(run_dir: Path) -> None:
    """Raises ConfigError if there is something else in place of a file that the run will write.

    A link could lead to a file of somebody else, and a FIFO would wait for ever.
    """
    for path in (*(run_dir / name for name in WRITTEN), *run_dir.glob("logs/*")):
        if path.exists() and not path.is_symlink() and not path.is_file():
            raise ConfigError(
                f"run_dir={run_dir}: {path.relative_to(run_dir)} is no file, and the run would write to it; remove it, "
                "or choose another run_dir"
            )
        if path.is_symlink():
            raise ConfigError(
                f"run_dir={run_dir}: {path.relative_to(run_dir)} is a link to {os.readlink(path)}, which the run would "
                "write to; remove the link, or choose another run_dir"
            )


def check_same_text(config: RunConfig, corpus: Corpus, checkpoint: str) -> None:
    """Raises ConfigError if the checkpoint was trained on another text or vocabulary."""
    saved = read_document(Path(checkpoint), "state.json")
    for what, now in (("vocabulary", corpus.vocab.fingerprint), ("data", corpus.fingerprint)):
        if saved.get(what) != now:
            raise ConfigError(
                f"resume={config.resume}: was trained on another {what} than data={corpus.name} has now; point data.* "
                "at the same files, or start a new run (another run_dir or name)"
            )


def check_splits(config: RunConfig, corpus: Corpus) -> None:
    """Raises ConfigError if a split that the run reads, perhaps hours later, does not fill one segment."""
    read = [("train", "train.")]
    if config.valid.enabled:
        read += [("valid", "valid."), ("test", "valid.")]
    if config.then is Then.evaluate:
        read.append(("test" if "test" in corpus.splits else "valid", "evaluation."))
    for split, section in read:
        lengths = getattr(config, section.removesuffix("."))
        if split in corpus.splits:
            tokens = len(corpus.tokens(split))
            check_split_fills_segment(tokens, lengths.batch_size, lengths.tgt_len, f"{split} split", section)
    training_stream(corpus, config.train, config.seed)
    if config.train.target_perplexity is not None and "test" not in corpus.splits:
        raise ConfigError(
            f"train.target_perplexity={config.train.target_perplexity:g} needs a test split, and data={corpus.name} "
            "has none; give data.test, or leave it out"
        )


def log_continuation(checkpoint: str, world_size: int) -> None:
    """Say where the run continues, and whether the number of processes changed."""
    log.info("going on from %s", checkpoint)
    before = read_document(Path(checkpoint), MANIFEST).get("world_size")
    if before != world_size:
        message = "%d processes instead of %d: memories are dealt out again, but dropout draws other numbers"
        log.warning(message, world_size, before)
