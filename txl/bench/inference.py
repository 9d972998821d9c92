"""benchmark suite=inference: latency and throughput of a model by batch size, precision and runtime.

The tokens are made up and follow Zipf's law, as words do. What was published for the nearest
machine is printed beside our rows.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from txl.bench.table_file import write_table
from txl.config.geometry import Geometry
from txl.config.machine_rules import check_cpu_arithmetic
from txl.config.precision import Arithmetic
from txl.config.schema import BenchmarkConfig, Runtime
from txl.config.training import longest_context
from txl.data.synthetic_text import zipf_tokens
from txl.evaluate.kv_cache import count_graphs
from txl.evaluate.load_model import load_trained_model
from txl.evaluate.loss import LossSum, run_segment
from txl.evaluate.runtimes import Memory, build_runtime, choose_runtime
from txl.model.transformer import TransformerXL
from txl.plan.published import published_inference_rows
from txl.system.compiled_programs import count_compiled_programs, forget_compiled_programs
from txl.system.devices import keep_freed_memory, pick_device, set_threads
from txl.system.hardware import cpu_model
from txl.system.precision import autocast, parameter_dtype, set_matmul_precision
from txl.system.timing import percentiles, synchronize

COLUMNS = (
    *("Batch size", "Sequence length", "Memory length", "Precision", "Runtime", "Throughput Avg (tok/s)"),
    *(f"Latency {name} (ms)" for name in ("Avg", "90%", "95%", "99%")),
)

SETTLING = 3  # segments after the memory is full that are not measured


def benchmark_inference(config: BenchmarkConfig) -> int:
    """Measure every combination, print the table, write the JSON; returns the exit code."""
    device = pick_device(config.hardware, 0)
    check_precisions(config, device)
    keep_freed_memory(device)
    set_threads(device, 1)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    name = gpu or cpu_model()
    machine = {"name": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    e = config.evaluation
    geometry = Geometry(e.tgt_len, e.mem_len, e.ext_len, e.clamp_len, e.same_length)
    print(f"{name}, torch {machine['torch']}, {machine['threads']} threads")
    print(f"{config.model.name}: {geometry}\n" + "  ".join(COLUMNS))
    rows = []
    for precision in config.benchmark.precisions:
        model = build_benchmark_model(config, device, precision)
        for runtime in config.benchmark.runtimes:
            for batch_size in config.benchmark.batch_sizes:
                forget_compiled_programs()
                row = measure_inference(model, geometry, runtime, batch_size, precision, config.benchmark.segments)
                rows.append({"model": config.model.name, **row})
                print(format_inference_row(row), flush=True)
                for published in published_inference_rows(config.model.name, row, gpu):
                    text = format_inference_row(published, published["implementation"])
                    print(f"{text}  ({published['machine']}, published)")
                if config.benchmark.json:  # after every row, so that an end before the last one loses nothing
                    write_table(Path(config.benchmark.json), rows, machine)
    return 0


def check_precisions(config: BenchmarkConfig, device: torch.device) -> None:
    """Raises ConfigError if one of the precisions cannot be computed here, before the first one is measured."""
    for precision in config.benchmark.precisions if device.type == "cpu" else ():
        check_cpu_arithmetic(precision, "this machine")


def build_benchmark_model(config: BenchmarkConfig, device: torch.device, precision: Arithmetic) -> TransformerXL:
    """The model of benchmark.checkpoint, or one of the configured shape with random weights."""
    set_matmul_precision(precision)
    dtype = parameter_dtype(precision)
    if config.benchmark.checkpoint:
        return load_trained_model(config.benchmark.checkpoint, device, dtype).model
    assert config.data.vocab_size is not None  # a rule
    torch.manual_seed(config.seed)
    longest = longest_context(vars(config.train))
    model = TransformerXL(config.model, config.data.vocab_size, config.data.cutoffs, longest)
    return model.to(device, dtype).eval()


@torch.no_grad()
def measure_inference(
    model: TransformerXL, geometry: Geometry, runtime: Runtime, batch_size: int, precision: Arithmetic, segments: int
) -> dict[str, Any]:
    """Time segments with a full memory; the time of a segment includes its losses.

    Args:
        model: the weights.
        geometry: the lengths to read with.
        runtime: how the model is run.
        batch_size: texts that are read at once.
        precision: of the matrix products.
        segments: how many are timed, after the memory is full and the first few are over.

    Returns:
        A row of the table.
    """
    device, runtime = next(model.parameters()).device, choose_runtime(runtime, model, geometry)
    T, warm = geometry.tgt_len, -(-geometry.mem_len // geometry.tgt_len) + SETTLING
    warm += count_graphs(geometry) if runtime is Runtime.graphs else 0  # each graph is captured at its first use
    length = (warm + segments) * T + 1
    ids = zipf_tokens(np.random.default_rng(0), batch_size * length, model.vocab_size)
    host_tokens = torch.from_numpy(ids).reshape(batch_size, length)
    tokens = host_tokens.to(device)
    with autocast(precision, device):
        fast = build_runtime(model, runtime, geometry, batch_size)
        losses, seconds = LossSum(fast, at_least=1), []
        memory: Memory = []
        for begin in range(0, (warm + segments) * T, T):
            input = tokens[:, begin : begin + T]
            target, host_target = (ids[:, begin + 1 : begin + T + 1] for ids in (tokens, host_tokens))
            synchronize()
            began = time.perf_counter()
            memory = run_segment(fast, input, target, memory, geometry, losses, host_target)
            synchronize()
            seconds.append(time.perf_counter() - began)
    found = percentiles(seconds[warm:])
    return {
        "batch_size": batch_size,
        "tgt_len": T,
        "mem_len": geometry.mem_len,
        "precision": precision.name,
        "runtime": runtime.name,
        "programs": count_compiled_programs(),  # of runtime=compile
        "tokens_per_second": batch_size * T / found["mean"],
        "latency_ms": {name: 1000 * value for name, value in found.items()},
        "segments": segments,
    }


def format_inference_row(row: dict[str, Any], implementation: str | None = None) -> str:
    """A row under COLUMNS: one of ours, or a published one with the name of its implementation."""
    if implementation is None:
        latency = row["latency_ms"]
        cells = [row["batch_size"], row["tgt_len"], row["mem_len"], row["precision"], row["runtime"]]
        numbers = [row["tokens_per_second"], *(latency[name] for name in ("mean", "p90", "p95", "p99"))]
    else:
        cells = [row[name] for name in COLUMNS[:3]] + [row["precision"], implementation]
        numbers = [row[name] for name in COLUMNS[5:]]
    cells += [f"{number:.1f}" if number >= 100 else f"{number:.2f}" for number in numbers]
    return "  ".join(f"{cell!s:>{len(name)}}" for cell, name in zip(cells, COLUMNS, strict=True))
