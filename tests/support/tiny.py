"""Small models, texts and runs that several tests share."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from txl.config.model import Init, ModelConfig, Positions

PROJECT = Path(__file__).resolve().parents[2]


def model_config(**changes) -> ModelConfig:
    values = dict(
        name="tiny",
        n_layer=2,
        n_head=2,
        d_model=16,
        d_head=8,
        d_inner=32,
        dropout=0.0,
        dropatt=0.0,
        positions=Positions.relative,
        pre_lnorm=False,
        untie_r=False,
        adaptive=True,
        div_val=1,
        tie_weight=True,
        tie_projs=[False, True],
        init=Init.normal,
        init_std=0.1,
        init_range=0.1,
        emb_init=Init.normal,
        emb_init_range=0.01,
        proj_init_std=0.1,
    )
    return ModelConfig(**values | changes)


def write_corpus(folder: Path, train_lines: int = 200, seed: int = 0) -> list[str]:
    """train/valid/test.txt of made-up sentences; returns the overrides that name them."""
    rng = random.Random(seed)
    words = "the a cat dog sat ran on under mat tree and or quickly never".split()
    folder.mkdir(parents=True, exist_ok=True)
    overrides = ["data=text", "data.vocab=char", f"data.cache={folder}/cache"]
    for split, lines in (("train", train_lines), ("valid", 40), ("test", 40)):
        text = "".join(" ".join(rng.choices(words, k=rng.randint(3, 9))) + "\n" for _ in range(lines))
        (folder / f"{split}.txt").write_text(text)
        overrides.append(f"data.{split}={folder}/{split}.txt")
    return overrides


TINY_RUN = [
    "model=small",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=16",
    "model.d_head=8",
    "model.d_inner=32",
    "model.dropout=0.1",
    "hardware=cpu",
    "train.batch_size=8",
    "train.tgt_len=8",
    "train.mem_len=8",
    "train.log_interval=1",
    "valid.tgt_len=8",
    "valid.batch_size=4",
    "valid.interval=1000",
    "scheduler.warmup_step=5",
    "tracking.environment=false",
]


def command(script: str, *overrides: str) -> list[str]:
    return [sys.executable, str(PROJECT / script), *map(str, overrides)]


def environment(**extra: str) -> dict[str, str]:
    """One thread per process: the machine is shared by several at once."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | extra


def run(script: str, *overrides: str, cwd: Path, expect: int = 0, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run an entry point as a user would; fails with its output when the exit code is another."""
    done = subprocess.run(
        command(script, *overrides), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def metrics(run_dir: Path, kind: str = "train") -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
