"""How fast this machine trains: a step and its parts on made-up tokens, beside what its matrix products could reach.

Tokens follow Zipf's law, as words do: the adaptive softmax then does the work that it does on a text.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from txl.choices import Arithmetic
from txl.config import BenchmarkConfig, RunConfig, longest_context, train_geometry
from txl.data import TokenStream
from txl.distributed import average_rows
from txl.errors import ConfigError
from txl.hardware import environment_record, keep_freed_memory, pick_device, set_threads
from txl.model import TransformerXL
from txl.optim import build_optimizer, clip
from txl.precision import AUTOCAST, autocast, loss_scaler, parameter_dtype, set_matmul_precision
from txl.rules import check_cpu_arithmetic
from txl.sampled import sample_softmax
from txl.state import seed_everything
from txl.timing import synchronize
from txl.trainer import Objective
from txl.zipf import zipf_tokens

PARTS = ("input", "forward", "backward", "optimizer")  # optimizer: clipping as well


@dataclass(frozen=True)
class TrainRow:
    """One line of the table. Seconds are medians over steps after the warm-up."""

    model: str
    precision: str
    micro_batch_size: int
    tokens_per_second: float
    step_seconds: float
    part_seconds: dict[str, float]
    flops_per_second: float  # of the model's own matrix products; recomputed ones do not count
    matmul_flops_per_second: float  # of one large product, measured in the same precision
    peak_memory_gb: float

    @property
    def mfu(self) -> float:
        """Share of the matrix-product ceiling."""
        return self.flops_per_second / self.matmul_flops_per_second

    def to_dict(self) -> dict:
        return vars(self) | {"mfu": self.mfu}

    def __str__(self) -> str:
        parts = "".join(f"{1000 * self.part_seconds[part]:>11.1f}" for part in PARTS)
        return (
            f"{self.model:<8} {self.precision:<9} {self.micro_batch_size:>5} {self.tokens_per_second:>10.1f} "
            f"{1000 * self.step_seconds:>10.1f}{parts} {self.flops_per_second / 1e9:>10.1f} {self.mfu:>6.1%} "
            f"{self.peak_memory_gb:>7.2f}"
        )


HEADER = (
    f"{'model':<8} {'precision':<9} {'micro':>5} {'tok/s':>10} {'ms/step':>10}"
    + "".join(f"{part:>11}" for part in PARTS)
    + f" {'GFLOP/s':>10} {'MFU':>6} {'GB':>7}"
)


def run(config: BenchmarkConfig) -> int:
    """Measure every precision with every micro batch; print a table, and write JSON where that was asked for."""
    vocab_size = config.data.vocab_size
    if vocab_size is None:
        raise ConfigError("data.vocab_size=null but a benchmark makes its tokens up; use data.vocab_size=50000")
    device = pick_device(config.hardware, 0)
    set_threads(device, 1)
    keep_freed_memory(device)
    options, rows = config.benchmark, []
    print(f"{device}, {torch.get_num_threads()} threads, {config.model.name}, {train_geometry(config)}")
    print(HEADER)
    for precision in options.precisions:
        if device.type == "cpu":
            check_cpu_arithmetic(precision, "this machine")
        for micro in options.micro_batch_sizes:
            point = replace(config, precision=replace(config.precision, name=precision))
            rows.append(measure_training(point, vocab_size, micro, device))
            print(rows[-1], flush=True)
    if options.json:
        record = {"machine": environment_record(), "rows": [row.to_dict() for row in rows]}
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(record, indent=1, default=str) + "\n")
    return 0


def clock() -> float:
    """Seconds, when everything that was started is done."""
    synchronize()
    return time.perf_counter()


def measure_training(config: BenchmarkConfig, vocab_size: int, micro: int, device: torch.device) -> TrainRow:
    """Training steps of one process, one micro batch each, as trainer.py makes them."""
    options, geometry, precision = config.benchmark, train_geometry(config), config.precision.name
    seed_everything(config.seed)
    set_matmul_precision(precision)
    longest = longest_context(vars(config.train))
    model = TransformerXL(
        config.model, vocab_size, config.data.cutoffs, longest, config.attention, config.recompute
    ).to(device, parameter_dtype(precision))
    objective, params = Objective(model), list(model.parameters())
    sampler, sparse_tables = sample_softmax(model, config.train.sampled_softmax, config.seed)
    optimizer = build_optimizer(config.optimizer, params, sparse_tables)
    scaler = loss_scaler(config.precision, device)
    steps = options.warmup_steps + options.steps
    count = micro * (geometry.tgt_len * steps + 1) + micro
    tokens = zipf_tokens(np.random.default_rng(config.seed), count, vocab_size)
    stream = TokenStream(tokens, micro, geometry.tgt_len, ext_len=geometry.ext_len)
    per_step, mems, marks = micro * geometry.tgt_len, [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> None:
        nonlocal mems
        marks.append([clock()])
        batch = stream.next()
        groups = model.softmax.clusters.group(batch.target.flatten()).to(device)
        input, target = batch.input.to(device), batch.target.to(device)
        sample = sampler.draw(len(marks)).to(device) if sampler else None
        marks[-1].append(clock())
        with autocast(precision, device):
            loss, _, mems = objective(input, target, mems, geometry, 1 / per_step, groups, sample)
        marks[-1].append(clock())
        scaler.scale(loss).backward()
        marks[-1].append(clock())
        for table in sparse_tables:
            table.grad = average_rows(table.grad)
        scaler.unscale_(optimizer)
        clip(optimizer, params, config.train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        marks[-1].append(clock())

    for _ in range(options.warmup_steps):
        step()
    marks.clear()
    profiled(lambda: [step() for _ in range(options.steps)], options.profile)
    seconds = statistics.median(mark[-1] - mark[0] for mark in marks)
    return TrainRow(
        config.model.name,
        precision.name,
        micro,
        per_step / seconds,
        seconds,
        {part: statistics.median(mark[i + 1] - mark[i] for mark in marks) for i, part in enumerate(PARTS)},
        6 * per_step * products_per_token(config, vocab_size, micro) / seconds,
        matmul_speed(precision, device),
        peak_memory(device) / 1e9,
    )


def profiled(work: Callable, trace: str | None) -> None:
    """Run, and write what torch's profiler saw to `trace` (for chrome://tracing or perfetto)."""
    if trace is None:
        work()
        return
    with torch.profiler.profile() as profile:
        work()
    profile.export_chrome_trace(trace)


def products_per_token(config: RunConfig, vocab_size: int, micro: int) -> float:
    """Multiply-adds of matrix products in a forward pass, per target token, on tokens after Zipf."""
    model, geometry = config.model, train_geometry(config)
    T = geometry.tgt_len + geometry.ext_len
    K, D, W = T + geometry.mem_len, model.d_model, model.n_head * model.d_head
    relative = model.positions.value == "relative"
    projections = D * W * (2 * T + 2 * K + (K / micro if relative else 0)) + 2 * T * D * model.d_inner
    scores = (3 if relative else 2) * T * K * W
    words = 1 / np.arange(1, vocab_size + 1)
    edges = [0, *(config.data.cutoffs if model.adaptive else []), vocab_size]
    softmax, width = (edges[1] + len(edges) - 2) * (model.d_embed or D), model.d_embed or D
    for i, (begin, end) in enumerate(zip(edges[1:-1], edges[2:], strict=True), start=1):
        softmax += words[begin:end].sum() / words.sum() * (end - begin) * (width // model.div_val**i)
    if config.train.sampled_softmax:
        softmax = (config.train.sampled_softmax + 1) * width
    return model.n_layer * (projections + scores) / geometry.tgt_len + softmax


def matmul_speed(precision: Arithmetic, device: torch.device) -> float:
    """FLOP/s of one large matrix product: the best of several, which is what the hardware gives here and now."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=parameter_dtype(precision)).unbind()
    if precision in AUTOCAST:
        a, b = a.to(AUTOCAST[precision]), b.to(AUTOCAST[precision])
    best, began = float("inf"), clock()
    while clock() - began < 0.5:
        begin = clock()
        a @ b.t()  # as in a linear layer
        best = min(best, clock() - begin)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: of the allocator on a GPU; on a CPU of the whole process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
