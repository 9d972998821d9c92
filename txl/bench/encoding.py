"""benchmark suite=encoding: how fast the words of a text become ids.

A text laid out as WikiText is encoded by this package and by a plain Python loop, opened again, and encoded while
eight processes want it at once.

Every task runs in processes of its own (`python -m txl.bench.encoding TASK FOLDER`), whose time and memory the system
counts. The parent must stay small, because a child's peak memory is at least that of its parent at its start.
"""

import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from txl.bench.table_file import write_table
from txl.config.compose import from_dict, to_dict
from txl.config.data import DataConfig, VocabKind
from txl.config.schema import BenchmarkConfig
from txl.data.corpus import open_corpus
from txl.data.numbered_words import CHUNK
from txl.data.synthetic_text import write_zipf_text
from txl.data.vocabulary import EOS
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError
from txl.files import write_json
from txl.system.hardware import cpu_model

PROCESSES = 8

VALID_BYTES = 1_000_000

DISK = 6  # room that is needed, in sizes of the text: itself, its ids three times, its words' numbers during counting

ENCODES = "encoding data="  # what open_corpus logs if it is the process that encodes

COLUMNS = ("Task   ", "Processes", "Seconds", "CPU seconds", "Peak GB", "Mtok/s", "  MB/s", "Encodings")


def benchmark_encoding(config: BenchmarkConfig) -> int:
    """Make the text, measure, print the table, write the JSON; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="encoding-") as name:
        folder = Path(name)
        check_disk_space(folder, config.benchmark.megabytes)
        write_json(folder / "config.json", to_dict(replace(config, data=made_up_data(config.data, folder))))
        text = run_encoding_task("write", folder)
        print(f"{cpu_model()}, {text['megabytes']:.0f} MB of words")
        print("  ".join(COLUMNS))
        rows = []
        for task, processes in (("encode", 1), ("plain", 1), ("open", 1), ("encode", PROCESSES)):
            if processes > 1:
                (folder / "ids").unlink()
                shutil.rmtree(folder / "cache")
            rows.append(run_encoding_task(task, folder, processes) | {"megabytes": text["megabytes"]})
            print(_format_row(rows[-1]), flush=True)
    made, plain = rows[:2]
    print(f"encode is {plain['seconds'] / made['seconds']:.1f} times as fast as the plain loop", end=" ")
    print(f"({plain['cpu_seconds'] / made['cpu_seconds']:.1f} times in CPU seconds), the same ids: {plain['equal']}")
    if config.benchmark.json:
        write_table(Path(config.benchmark.json), rows)
    return 0 if plain["equal"] else 1


def made_up_data(data: DataConfig, folder: Path) -> DataConfig:
    """The options of the made-up data set in this folder."""
    return DataConfig(
        name="made",
        path=str(folder),
        train="train.txt",
        valid="valid.txt",
        split=data.split,
        vocab=VocabKind.word,
        lower_case=False,
        min_freq=0,
        cutoffs=data.cutoffs,
        metric=data.metric,
        cache=str(folder / "cache"),
    )


def check_disk_space(folder: Path, megabytes: int) -> None:
    """Raises ConfigError if a text of this size and its ids do not fit the disk."""
    free = shutil.disk_usage(folder).free // 10**6
    if free < DISK * megabytes:
        raise ConfigError(
            f"benchmark.megabytes={megabytes} needs {DISK * megabytes} MB in {folder.parent}, {free} are free; "
            "lower it, or set TMPDIR to another folder"
        )


def run_encoding_task(task: str, folder: Path, processes: int = 1) -> dict[str, Any]:
    """Run a task in processes that start together; returns a row of the table.

    The seconds are those of the slowest process; CPU seconds are added up.
    """
    command = [sys.executable, "-m", "txl.bench.encoding", task, str(folder)]
    began = time.perf_counter()
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    outputs = [child.communicate() for child in children]
    process_seconds = time.perf_counter() - began
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(f"{task} failed:\n{errors}")
    found: list[dict[str, Any]] = [json.loads(output) for output, _ in outputs]
    return found[0] | {
        "task": task,
        "processes": processes,
        "seconds": max(one["seconds"] for one in found),
        "process_seconds": process_seconds,  # with Python's start and imports
        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
        "peak_memory_gb": max(one["peak_memory_gb"] for one in found),
        "encodings": sum(ENCODES in errors for _, errors in outputs),
    }


def _format_row(row: dict[str, Any]) -> str:
    """A row under COLUMNS."""
    speeds: list[Any] = [row["tokens"] / row["seconds"] / 1e6, row["megabytes"] / row["seconds"]]
    if row["task"] == "open":
        speeds = ["-", "-"]
    cells = [row["processes"], row["seconds"], row["cpu_seconds"], row["peak_memory_gb"], *speeds, row["encodings"]]
    texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    columns = zip(texts, COLUMNS[1:], strict=True)
    return "  ".join([f"{row['task']:<{len(COLUMNS[0])}}", *(f"{text:>{len(name)}}" for text, name in columns)])


# --------------------------------------------------------------------------- in a process of its own


def do_encoding_task(task: str, folder: Path) -> dict[str, Any]:
    """Do a task in this process and measure it. The seconds are those of the task, without Python's start."""
    config = from_dict(json.loads((folder / "config.json").read_text()), BenchmarkConfig)
    tasks = {"write": _write_text, "encode": _encode, "open": _encode, "plain": _encode_in_a_loop}
    began = time.perf_counter()
    values = tasks[task](config, folder)
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    if task == "plain":
        values["equal"] = _same_ids(folder / "ids", open_corpus(config.data).tokens("train"))
    used_seconds = used.ru_utime + used.ru_stime
    return values | {"seconds": seconds, "cpu_seconds": used_seconds, "peak_memory_gb": 1024 * used.ru_maxrss / 1e9}


def _write_text(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    write_zipf_text(folder / "train.txt", config.benchmark.megabytes * 10**6, config.seed)
    write_zipf_text(folder / "valid.txt", VALID_BYTES, config.seed + 1)
    return {"megabytes": (folder / "train.txt").stat().st_size / 1e6}


def _encode(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    return {"tokens": len(open_corpus(config.data).tokens("train"))}


def _encode_in_a_loop(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Count the words of the text, then look up each of them: the least that a plain loop must do."""
    counts: Counter[str] = Counter()
    ids, tokens = array("i"), 0
    with open(folder / "train.txt", encoding="utf-8") as lines:
        for text in lines:
            counts.update(text.split())
    words = WordVocabulary.from_counts(counts).ids
    with open(folder / "train.txt", encoding="utf-8") as lines, open(folder / "ids", "wb") as file:
        for text in lines:
            ids.extend([words[word] for word in text.split()])
            ids.append(words[EOS])
            if len(ids) > CHUNK:
                ids.tofile(file)
                tokens += len(ids)
                del ids[:]
        ids.tofile(file)
    return {"tokens": tokens + len(ids)}


def _same_ids(file: Path, tokens: np.ndarray) -> bool:
    """Whether a file of int32 holds these tokens."""
    found = np.memmap(file, np.int32, mode="r")
    blocks = range(0, len(found), CHUNK)
    return len(found) == len(tokens) and all((found[i : i + CHUNK] == tokens[i : i + CHUNK]).all() for i in blocks)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    print(json.dumps(do_encoding_task(sys.argv[1], Path(sys.argv[2]))))
