"""How fast words become ids: a text laid out as WikiText, encoded beside a plain Python loop, opened again, and wanted
by eight processes at once.

Everything is done in processes of its own (`python -m txl.bench.encoding TASK FOLDER CACHE`), whose time and memory
the system counts. This one stays small: a child's peak memory is at least what its parent had when it was started.
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

import numpy as np

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
from txl.system.versions_and_devices import environment_record

PROCESSES = 8


VALID_BYTES = 1_000_000


DISK = 6  # times the text: itself, its ids three times, and its words' numbers while they are counted


WORKS = "encoding data="  # what open_corpus logs when it does the work


COLUMNS = ("Task   ", "Processes", "Seconds", "CPU seconds", "Peak GB", "Mtok/s", "  MB/s", "Encodings")


def run(config: BenchmarkConfig) -> int:
    """Make the text, measure, print the table, write the JSON; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="encoding-") as name:
        folder = Path(name)
        check_disk(folder, config.benchmark.megabytes)
        write_json(folder / "config.json", to_dict(replace(config, data=made_up(config.data, folder))))
        text = measure("write", folder)
        print(f"{cpu_model()}, {text['megabytes']:.0f} MB of words")
        print("  ".join(COLUMNS))
        rows = []
        for task, processes in (("encode", 1), ("plain", 1), ("open", 1), ("encode", PROCESSES)):
            if processes > 1:
                (folder / "ids").unlink()
                shutil.rmtree(folder / "cache")
            rows.append(measure(task, folder, processes) | {"megabytes": text["megabytes"]})
            print(line(rows[-1]), flush=True)
    made, plain = rows[:2]
    print(f"encode is {plain['seconds'] / made['seconds']:.1f} times as fast as the plain loop", end=" ")
    print(f"({plain['cpu_seconds'] / made['cpu_seconds']:.1f} times in CPU seconds), the same ids: {plain['equal']}")
    if config.benchmark.json:
        file = Path(config.benchmark.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": environment_record(), "rows": rows}, indent=1)
    return 0 if plain["equal"] else 1


def made_up(data: DataConfig, folder: Path) -> DataConfig:
    """The data set that the text is."""
    files = {"path": str(folder), "train": "train.txt", "valid": "valid.txt", "cache": str(folder / "cache")}
    unused = {key: getattr(data, key) for key in ("split", "cutoffs", "metric")}
    return DataConfig(name="made", vocab=VocabKind.word, lower_case=False, min_freq=0, **files, **unused)


def check_disk(folder: Path, megabytes: int) -> None:
    free = shutil.disk_usage(folder).free // 10**6
    if free < DISK * megabytes:
        raise ConfigError(
            f"benchmark.megabytes={megabytes} needs {DISK * megabytes} MB in {folder.parent}, {free} are free; "
            "lower it, or set TMPDIR to another folder"
        )


def measure(task: str, folder: Path, processes: int = 1) -> dict:
    """A task done by processes that start together: seconds until the last one is done, other values of all."""
    command = [sys.executable, "-m", "txl.bench.encoding", task, str(folder)]
    began, pipes = time.perf_counter(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    outputs = [child.communicate() for child in children]
    process_seconds = time.perf_counter() - began
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(f"{task} failed:\n{errors}")
    found = [json.loads(output) for output, _ in outputs]
    return found[0] | {
        "task": task,
        "processes": processes,
        "seconds": max(one["seconds"] for one in found),
        "process_seconds": process_seconds,  # with Python's start and imports
        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
        "peak_memory_gb": max(one["peak_memory_gb"] for one in found),
        "encodings": sum(WORKS in errors for _, errors in outputs),
    }


def line(row: dict) -> str:
    """A row under COLUMNS."""
    speeds = [row["tokens"] / row["seconds"] / 1e6, row["megabytes"] / row["seconds"]]
    if row["task"] == "open":
        speeds = ["-", "-"]
    cells = [row["processes"], row["seconds"], row["cpu_seconds"], row["peak_memory_gb"], *speeds, row["encodings"]]
    texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    columns = zip(texts, COLUMNS[1:], strict=True)
    return "  ".join([f"{row['task']:<{len(COLUMNS[0])}}", *(f"{text:>{len(name)}}" for text, name in columns)])


# --------------------------------------------------------------------------- in a process of its own


def child(task: str, folder: Path) -> dict:
    """What it took. The seconds are the task's, without Python's start and imports."""
    config = from_dict(json.loads((folder / "config.json").read_text()), BenchmarkConfig)
    tasks = {"write": write, "encode": encode, "open": encode, "plain": plain}
    began = time.perf_counter()
    values = tasks[task](config, folder)
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    if task == "plain":
        values["equal"] = same_ids(folder / "ids", open_corpus(config.data).tokens("train"))
    used_seconds = used.ru_utime + used.ru_stime
    return values | {"seconds": seconds, "cpu_seconds": used_seconds, "peak_memory_gb": 1024 * used.ru_maxrss / 1e9}


def write(config: BenchmarkConfig, folder: Path) -> dict:
    write_zipf_text(folder / "train.txt", config.benchmark.megabytes * 10**6, config.seed)
    write_zipf_text(folder / "valid.txt", VALID_BYTES, config.seed + 1)
    return {"megabytes": (folder / "train.txt").stat().st_size / 1e6}


def encode(config: BenchmarkConfig, folder: Path) -> dict:
    return {"tokens": len(open_corpus(config.data).tokens("train"))}


def plain(config: BenchmarkConfig, folder: Path) -> dict:
    """Count the words of the text, then look every one up: no more than a loop must do, a line at a time."""
    counts, ids, tokens = Counter(), array("i"), 0
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


def same_ids(file: Path, tokens: np.ndarray) -> bool:
    found = np.memmap(file, np.int32, mode="r")
    blocks = range(0, len(found), CHUNK)
    return len(found) == len(tokens) and all((found[i : i + CHUNK] == tokens[i : i + CHUNK]).all() for i in blocks)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]))))
