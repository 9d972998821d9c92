"""How fast this machine runs a model with fixed weights: latency and throughput by batch size, precision and runtime.

Tokens follow Zipf's law, as words do. Rows that the original published for the nearest machine stand beside ours.
"""

import json
import re
import time
from pathlib import Path

import numpy as np
import torch

from txl.config.geometry import Geometry
from txl.config.machine_rules import check_cpu_arithmetic
from txl.config.precision import Arithmetic
from txl.config.schema import BenchmarkConfig, Runtime
from txl.config.training import longest_context
from txl.data.synthetic_text import zipf_tokens
from txl.errors import ConfigError
from txl.evaluate.kv_cache import count_graphs
from txl.evaluate.load_model import load_trained_model
from txl.evaluate.loss import LossSum, run_segment
from txl.evaluate.runtimes import build_runtime, choose_runtime
from txl.files import write_json
from txl.model.transformer import TransformerXL
from txl.system.devices import keep_freed_memory, pick_device, set_threads
from txl.system.hardware import cpu_model
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision
from txl.system.timing import percentiles, synchronize

PUBLISHED = Path(__file__).with_name("published_inference.json")


NEAREST = [("T4", "T4"), ("V100", "DGX-1"), ("A100|H100|H200", "A100")]  # GPU: published machine; a CPU has none


COLUMNS = ("Batch size", "Sequence length", "Memory length", "Precision", "Runtime", "Throughput Avg (tok/s)")


COLUMNS += tuple(f"Latency {name} (ms)" for name in ("Avg", "90%", "95%", "99%"))


SETTLING = 3  # segments after the memory is full that are not measured


def run(config: BenchmarkConfig) -> int:
    """Measure every combination, print the table, write the JSON; returns the exit code."""
    device = pick_device(config.hardware, 0)
    keep_freed_memory(device)
    set_threads(device, 1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    machine = {"name": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    e = config.evaluation
    geometry = Geometry(e.tgt_len, e.mem_len, e.ext_len, e.clamp_len, e.same_length)
    print(f"{name}, torch {machine['torch']}, {machine['threads']} threads")
    print(f"{config.model.name}: {geometry}\n" + "  ".join(COLUMNS))
    rows = []
    for precision in config.benchmark.precisions:
        if device.type == "cpu":
            check_cpu_arithmetic(precision, "this machine")
        model = build_model(config, device, precision)
        for runtime in config.benchmark.runtimes:
            for batch_size in config.benchmark.batch_sizes:
                row = measure(model, geometry, runtime, batch_size, precision, config.benchmark.segments)
                rows.append({"model": config.model.name, **row})
                print(line(row), flush=True)
                for published in published_rows(config.model.name, row, device):
                    print(line(published, published["implementation"]) + f"  ({published['machine']}, published)")
    if config.benchmark.json:
        file = Path(config.benchmark.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": machine, "rows": rows}, indent=1)
    return 0


def build_model(config: BenchmarkConfig, device: torch.device, precision: Arithmetic) -> TransformerXL:
    """The checkpoint's model, or one of the configured shape with random weights."""
    set_matmul_precision(precision)
    dtype = parameter_dtype(precision)
    if config.benchmark.checkpoint:
        return load_trained_model(config.benchmark.checkpoint, device, dtype).model
    if config.data.vocab_size is None:
        raise ConfigError(f"data={config.data.name} does not say data.vocab_size; give it, or benchmark.checkpoint")
    torch.manual_seed(config.seed)
    longest = longest_context(vars(config.train))
    model = TransformerXL(config.model, config.data.vocab_size, config.data.cutoffs, longest)
    return model.to(device, dtype).eval()


@torch.no_grad()
def measure(
    model: TransformerXL, geometry: Geometry, runtime: Runtime, batch_size: int, precision: Arithmetic, segments: int
) -> dict:
    """Time per segment once the memory is full, the losses of each segment included."""
    device, runtime = next(model.parameters()).device, choose_runtime(runtime, model, geometry)
    T, warm = geometry.tgt_len, -(-geometry.mem_len // geometry.tgt_len) + SETTLING
    warm += count_graphs(geometry) if runtime is Runtime.graphs else 0  # each is captured when it is first seen
    length = (warm + segments) * T + 1
    ids = zipf_tokens(np.random.default_rng(0), batch_size * length, model.vocab_size)
    tokens = torch.from_numpy(ids).reshape(batch_size, length).to(device)
    with autocast(precision, device):
        fast = build_runtime(model, runtime, geometry, batch_size)
        losses, mems, seconds = LossSum(fast, at_least=1), [], []
        for begin in range(0, (warm + segments) * T, T):
            input, target = tokens[:, begin : begin + T], tokens[:, begin + 1 : begin + T + 1]
            synchronize()
            began = time.perf_counter()
            mems = run_segment(fast, input, target, mems, geometry, losses)
            synchronize()
            seconds.append(time.perf_counter() - began)
    found = percentiles(seconds[warm:])
    return {
        "batch_size": batch_size,
        "tgt_len": T,
        "mem_len": geometry.mem_len,
        "precision": precision.name,
        "runtime": runtime.name,
        "tokens_per_second": batch_size * T / found["mean"],
        "latency_ms": {name: 1000 * value for name, value in found.items()},
        "segments": segments,
    }


def line(row: dict, implementation: str | None = None) -> str:
    """A row under COLUMNS: ours, or a published one with its implementation's name."""
    if implementation is None:
        latency = row["latency_ms"]
        cells = [row["batch_size"], row["tgt_len"], row["mem_len"], row["precision"], row["runtime"]]
        numbers = [row["tokens_per_second"], *(latency[name] for name in ("mean", "p90", "p95", "p99"))]
    else:
        cells = [row[name] for name in COLUMNS[:3]] + [row["precision"], implementation]
        numbers = [row[name] for name in COLUMNS[5:]]
    cells += [f"{number:.1f}" if number >= 100 else f"{number:.2f}" for number in numbers]
    return "  ".join(f"{cell!s:>{len(name)}}" for cell, name in zip(cells, COLUMNS, strict=True))


def published_rows(model: str, row: dict, device: torch.device) -> list[dict]:
    """What the original published for this batch size and precision on the nearest machine; none for a CPU."""
    if device.type != "cuda":
        return []
    name = torch.cuda.get_device_name(device)
    nearest = next((machine for pattern, machine in NEAREST if re.search(pattern, name)), None)
    return [
        published
        for published in json.loads(PUBLISHED.read_text())
        if nearest is not None
        and nearest in published["machine"]
        and published["model"] == model
        and published["precision"] == {"bf16": "fp16"}.get(row["precision"], row["precision"])
        and published["Batch size"] == row["batch_size"]
    ]
