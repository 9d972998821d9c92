"""Run folders whose numbers are made up, so that a report can be checked without training."""

import json
import math
import random
from pathlib import Path

import yaml

MEASURED = dict(tgt_len=64, mem_len=64, ext_len=0, clamp_len=-1, same_length=False, batch_size=16)
BEGAN = 1_800_000_000.0


def line(kind: str, step: int, loss: float | None, metric: str = "ppl", **more) -> dict:
    """A record of metrics.jsonl as JsonlSink writes it."""
    score = {} if loss is None else {metric: math.exp(loss) if metric == "ppl" else loss / math.log(2)}
    if kind == "train":
        more = {"tokens_per_second": 100.0 + step, "tokens_seen": 1000 * step, "time": BEGAN + 2.0 * step} | more
    else:
        more = MEASURED | {"seconds": 1.0} | more
    return {"kind": kind, "step": step} | {"loss": loss} | score | more


def usual_lines(offset: float = 0.0, steps: int = 300, test: bool = True) -> list[dict]:
    """A training that goes well, with three validations per 300 steps; `offset` is added to its results."""
    train = [line("train", step, 3.0 + 5 / step + offset) for step in range(10, steps + 1, 10)]
    valid = [line("valid", step, 3.0 + 30 / step + offset) for step in range(100, steps + 1, 100)]
    return [*train, *valid, *([line("test", steps, 3.0 + offset)] if test else [])]


def write_run(folder: Path, lines: list[dict] | None = None, seed: int = 1, finished: bool = True, **config) -> Path:
    """A run folder. `config`: dotted keys with `__` for dots, such as optimizer__lr=0.01."""
    lines = usual_lines() if lines is None else lines
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))
    settings = {"name": folder.parent.name, "seed": seed, "model": {"name": "small"}, "data": {"name": "mini"}}
    settings |= {"optimizer": {"name": "lamb", "lr": 0.01}, "train": {"max_step": 300, "tgt_len": 64}}
    for key, value in config.items():
        section, _, name = key.rpartition("__")
        (settings.setdefault(section, {}) if section else settings)[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "plan.json").write_text(json.dumps({"world_size": 1, "micro_batch_size": 16, "nodes": 1}))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"train_seconds": 600.0, "tokens_per_second": 512.0}))
    return folder


def write_sweep(folder: Path, rates=(0.003, 0.01, 0.03), seeds=(1, 2, 3), steps: int = 300) -> list[Path]:
    """Runs of every rate with every seed; 0.01 is the best. The seeds of a rate differ a little."""
    written = []
    for rate in rates:
        for seed in seeds:
            chance = random.Random(seed).gauss(0, 0.01)
            lines = usual_lines(0.1 * abs(math.log10(rate / 0.01)) + chance, steps)
            path = folder / "sweep" / f"{round(rate * 1e6):08x}-s{seed}"
            written.append(write_run(path, lines, seed, optimizer__lr=rate, train__max_step=steps))
    return written


def write_study(folder: Path, states=("complete", "complete", "complete", "pruned", "fail")) -> Path:
    """The folder of a search over two keys: trial 1 is the best, pruned and failed ones have no end."""
    space = [
        {"key": "optimizer.lr", "low": 1e-4, "high": 0.1, "step": None, "log": True, "whole": False, "choices": []},
        {"key": "model.dropout", "low": 0.0, "high": 0.0, "log": False, "whole": False, "choices": ["0.0", "0.2"]},
    ]
    trials = []
    for number, state in enumerate(states):
        rate, dropout = [0.001, 0.01, 0.05][number % 3], ["0.0", "0.2"][number % 2]
        ended, offset = state == "complete", 0.1 * abs(number - 1)
        lines = usual_lines(offset) if ended else usual_lines(1.0, 100, test=False)
        path = folder / f"trial_{number}"
        write_run(path, lines, 1, ended, optimizer__lr=rate, model__dropout=float(dropout))
        if state == "pruned":
            (path / "pruned.json").write_text(json.dumps({"step": 100, "loss": 4.3, "why": "hopeless"}))
        trial = {"number": number, "folder": path.name, "state": state, "step": 300 if ended else 100}
        trial |= {"values": {"optimizer.lr": rate, "model.dropout": dropout}}
        trials.append(trial | {"loss": 3.1 + offset if ended else None, "last_loss": 3.1 + offset if ended else 4.3})
    study = {"space": space, "trials": trials, "importances": {"optimizer.lr": 0.9, "model.dropout": 0.1}}
    study |= {"overrides": [], "pruning": True, "importances_by": "PED-ANOVA of Optuna 5.0.0"}
    (folder / "study.json").write_text(json.dumps(study))
    (folder / "study.log").touch()
    return folder
