"""The kinds of runs that the campaigns disturb: each a tiny run of one or two processes with other options."""

from pathlib import Path

import numpy as np

from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN

STEPS = 16

# Saved often, so that kills fall into saving as well as into steps; validated, so that there is a best checkpoint.
SHARED = [
    *(option for option in TINY_RUN if not option.startswith("valid.interval")),
    f"train.max_step={STEPS}",
    "checkpoint.interval=3",
    "valid.interval=6",
    "valid.max_steps=4",
]

CASES: dict[str, list[str]] = {
    "plain": [],
    "two_processes": ["gpus=2"],
    "roll": ["train.roll=true", "train.batch_size=16", "train.tgt_len=32"],
    "dropout": ["model.dropout=0.3", "model.dropatt=0.2", "train.roll=true"],
    "accumulation": ["train.micro_batch_size=2", "train.batch_size=8"],
    "accumulation_two_processes": ["gpus=2", "train.micro_batch_size=2", "train.batch_size=8", "train.roll=true"],
    "varlen": ["train.varlen=true", "train.tgt_len=16", "train.ext_len=3"],
    "varlen_two_processes": ["gpus=2", "train.varlen=true", "train.tgt_len=16", "train.first_rank_batch_size=5"],
    "sampled_softmax": ["train.sampled_softmax=8"],
    "sampled_softmax_two_processes": ["gpus=2", "train.sampled_softmax=8"],
    "muon": ["optimizer=muon"],
    "muon_two_processes": ["gpus=2", "optimizer=muon"],
    "words": ["data.vocab=word"],
    "ids": [],
    "sentences": [],
    "no_validation": ["valid.enabled=false"],
    "keep_1": ["checkpoint.keep=1", "valid.interval=3"],
    "evaluated": ["then=evaluate", "sample_tokens=8", "evaluation.tgt_len=8", "evaluation.mem_len=8"],
}

DRAWN = ("plain", "two_processes", "evaluated")  # these draw their loss curve at the end; it takes as long as 8 steps


def write_data(folder: Path) -> dict[str, list[str]]:
    """Write small data sets; returns the options of each case that name its data."""
    text = write_corpus(folder / "text", train_lines=120)
    ids = folder / "ids"
    ids.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    options = ["data=ids", f"data.cache={ids}/cache", "data.vocab_size=50"]
    for split, tokens in (("train", 4000), ("valid", 900), ("test", 900)):
        np.save(ids / f"{split}.npy", rng.integers(0, 50, tokens).astype(np.uint16))
        options.append(f"data.{split}={ids}/{split}.npy")
    sentences = [*text, "data.vocab=word", "data.sentences=true", f"data.cache={folder}/sentences"]
    return {case: text for case in CASES} | {"ids": options, "sentences": sentences}


def arguments_of(case: str, data: dict[str, list[str]], run_dir: Path) -> list[str]:
    """The command line of a case."""
    return [*data[case], *SHARED, *CASES[case], f"run_dir={run_dir}"]
