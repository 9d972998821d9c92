"""The run folder before the start: its lock, the checkpoint to go on from, the configuration, a copy of the code."""

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from txl.config.schema import RunConfig, Then
from txl.data.batches import check_size
from txl.data.corpus import Corpus, open_corpus
from txl.data.sentence_batches import training_stream
from txl.errors import ConfigError
from txl.launch.choose_checkpoint import check_source, find_checkpoint
from txl.launch.run_folder import write_run_folder
from txl.launch.run_lock import held_lock
from txl.plan.run_plan import Plan, make_plan

log = logging.getLogger(__name__)


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
