"""benchmark suite=train on one rank: the trainer's own step and its parts, beside the speed of large matrix products.

The tokens are made up and follow Zipf's law, as words do, so that the adaptive softmax works as it does on a text.
"""

import contextlib
import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from txl.bench.inference import check_precisions
from txl.config.geometry import train_geometry
from txl.config.precision import Arithmetic
from txl.config.schema import BenchmarkConfig, RunConfig
from txl.data.corpus import Corpus
from txl.data.synthetic_text import zipf_tokens
from txl.data.word_vocabulary import WordVocabulary
from txl.model.attention import choose_backend
from txl.model.linear import linear
from txl.plan.run_plan import make_plan
from txl.system.compiled_programs import count_compiled_programs, forget_compiled_programs
from txl.system.precision import AUTOCAST, parameter_dtype
from txl.system.timing import synchronized_clock
from txl.system.world import World
from txl.tracking.tracker import Tracker
from txl.train.trainer import Trainer

PARTS = ("input", "forward", "backward", "optimizer")  # of a step; clipping belongs to the optimizer

TRACED = 2  # steps in the trace of benchmark.profile: a step on a GPU is thousands of events
GROUP = 5  # steps between two looks at the clock on a GPU, where the host runs ahead of the device

RESULT = "benchmark.json"  # file that rank 0 writes


@dataclass(frozen=True)
class TrainRow:
    """One row of the table. Seconds are medians of rank 0 over the steps after the warm-up, see `time_steps`."""

    model: str
    n_layer: int
    tgt_len: int
    mem_len: int
    precision: str
    attention: str
    compile: bool  # whether programs were compiled
    programs: int  # how many; more than one means that something was compiled again
    processes: int
    micro_batch_size: int
    tokens_per_second: float  # of all processes
    step_seconds: float
    host_seconds: float  # until the host had queued a step; on a CPU the whole step
    part_seconds: dict[str, float]
    flops_per_second: float  # of one process, for the model's own matrix products; recomputed ones do not count
    matmul_flops_per_second: float  # of one large product, measured in the same precision
    mfu: float  # flops_per_second / matmul_flops_per_second
    peak_memory_gb: float  # of rank 0
    plan_memory_gb: float | None  # what the plan had estimated

    def __str__(self) -> str:
        parts = "".join(f"{1000 * self.part_seconds[part]:>11.1f}" for part in PARTS)
        return (
            f"{self.model:<8} {self.n_layer:>6} {f'{self.tgt_len}+{self.mem_len}':>8} {self.precision:<9} "
            f"{self.processes:>9} {self.micro_batch_size:>5} {self.tokens_per_second:>10.1f} "
            f"{1000 * self.step_seconds:>10.1f}{parts} {self.flops_per_second / 1e9:>10.1f} {self.mfu:>6.1%} "
            f"{self.peak_memory_gb:>7.2f}"
        )


HEADER = (
    f"{'model':<8} {'layers':>6} {'lengths':>8} {'precision':<9} {'processes':>9} {'micro':>5} {'tok/s':>10} "
    f"{'ms/step':>10}" + "".join(f"{part:>11}" for part in PARTS) + f" {'GFLOP/s':>10} {'MFU':>6} {'GB':>7}"
)


class MadeUpCorpus(Corpus):
    """Random tokens in the place of a data set: what a training step reads, and no files."""

    def __init__(self, vocab_size: int, count: int, seed: int):
        """Draw `count` tokens of a vocabulary of this size."""
        self.vocab, self.shards = WordVocabulary(map(str, range(vocab_size))), None
        self._tokens = zipf_tokens(np.random.default_rng(seed), count, vocab_size)

    def tokens(self, split: str) -> np.ndarray:
        """[count] ids, the same for every split."""
        return self._tokens


# --------------------------------------------------------------------------- one rank


def measure_training(
    config: BenchmarkConfig, world: World, device: torch.device, on_row: Callable[[list[TrainRow]], None]
) -> None:
    """Measure every precision with every micro batch; rank 0 prints the rows as they come. Collective.

    A row that does not fit into a GPU's memory is said and left out.

    Args:
        config: the benchmark.
        world: which rank this is.
        device: where it computes.
        on_row: rank 0 calls it with all rows so far, so that an end before the last row loses none.
    """
    check_precisions(config, device)
    if world.is_main:
        print(f"{device}, {torch.get_num_threads()} threads, {config.model.name}, {train_geometry(config)}\n{HEADER}")
    rows: list[TrainRow] = []
    for precision in config.benchmark.precisions:
        for micro in config.benchmark.micro_batch_sizes:
            row_config = configure_train_row(config, precision, micro, world)
            try:
                rows.append(measure_train_row(row_config, world, device))
            except torch.OutOfMemoryError:
                if world.world_size > 1:
                    raise  # the other ranks wait for this one
                print(f"{config.model.name}: {precision.name} with micro batch {micro} does not fit: left out")
                continue
            if world.is_main:
                print(rows[-1], flush=True)
                on_row(rows)


def configure_train_row(config: BenchmarkConfig, precision: Arithmetic, micro: int, world: World) -> BenchmarkConfig:
    """The run that one row measures.

    Args:
        config: the benchmark.
        precision: of the row.
        micro: sequences per process and step.
        world: how many processes there are.

    Returns:
        The same configuration with this batch and precision and no run folder, and with steps as most of a training
        are: with memory, without multi-token prediction.
    """
    train = replace(
        config.train,
        batch_size=micro * world.world_size,
        micro_batch_size=micro,
        local_batch_size=None,
        grad_accum_steps=None,
        first_rank_batch_size=None,
        mem_from_step=0,
        multi_token_weight=0.0,
        multi_token_steps=0,
    )
    return replace(config, train=train, precision=replace(config.precision, name=precision), debug=True)


def measure_train_row(config: BenchmarkConfig, world: World, device: torch.device) -> TrainRow:
    """Measure one row (see `configure_train_row`). Collective."""
    options, geometry, precision = config.benchmark, train_geometry(config), config.precision.name
    vocab_size, batch, micro = config.data.vocab_size, config.train.batch_size, config.train.micro_batch_size
    assert vocab_size is not None and micro is not None
    warmup = max(options.warmup_steps, 1 + -(-geometry.mem_len // geometry.tgt_len))  # until the memory is full
    corpus = MadeUpCorpus(
        vocab_size, batch * (geometry.tgt_len * (warmup + 2 * options.steps + GROUP + TRACED) + 2), config.seed
    )
    start_afresh(device)
    plan = make_plan(config, vocab_size)
    trainer = Trainer(config, plan, corpus, world, device, Tracker())
    trainer.model.train()
    for _ in range(warmup):
        trainer.step()
    seconds, host_seconds, parts = time_steps(trainer, options.steps)
    if options.profile is not None:
        write_trace(trainer, Path(options.profile) if world.is_main else None)
    programs = count_compiled_programs()
    per_process = micro * geometry.tgt_len
    flops = 6 * per_process * products_per_token(config, vocab_size, micro) / seconds
    ceiling = matmul_speed(precision, device)
    return TrainRow(
        config.model.name, config.model.n_layer, geometry.tgt_len, geometry.mem_len, precision.name,
        choose_backend(config.attention, device, precision).name, programs > 0, programs,
        world.world_size, micro, world.world_size * per_process / seconds, seconds, host_seconds, parts,
        flops, ceiling, flops / ceiling, peak_memory(device) / 1e9, plan.memory_gb,
    )  # fmt: skip


def start_afresh(device: torch.device) -> None:
    """Forget what an earlier row left: its model in memory, its compiled programs, its peak of memory."""
    forget_compiled_programs()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def time_steps(trainer: Trainer, steps: int) -> tuple[float, float, dict[str, float]]:
    """Median seconds of a step, of the host's part of it, and of each of its parts.

    A training waits for the device only where it logs. So on a GPU the clock is read after every GROUP steps. The
    parts are timed in further steps, because each part has to wait for the device.
    """
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    last = 0.0

    def on_part_done(part: str) -> None:
        nonlocal last
        now = synchronized_clock()
        parts[part].append(now - last)
        last = now

    def run(count: int) -> tuple[float, float]:
        """Seconds per step until the device, and until the host, was done."""
        nonlocal last
        began = last = synchronized_clock()
        for _ in range(count):
            trainer.step()
        queued = time.perf_counter()
        return (synchronized_clock() - began) / count, (queued - began) / count

    groups: list[tuple[float, float]] = []
    if trainer.device.type == "cuda":
        groups = [run(GROUP) for _ in range(max(1, steps // GROUP))]
    trainer.optimizer_step.on_part_done = on_part_done
    in_parts = [run(1) for _ in range(steps)]
    whole, host = (statistics.median(values) for values in zip(*(groups or in_parts), strict=True))
    return whole, host, {part: statistics.median(found) for part, found in parts.items()}


def write_trace(trainer: Trainer, file: Path | None) -> None:
    """Do TRACED steps under torch's profiler and write the trace, for chrome://tracing or perfetto.

    These steps are not timed. `file` None: do the steps without a trace, on a rank beside the first. Collective.
    """
    trainer.optimizer_step.on_part_done = lambda part: None
    with contextlib.nullcontext() if file is None else torch.profiler.profile() as profile:
        for _ in range(TRACED):
            trainer.step()
        synchronized_clock()
    if profile is not None:
        profile.export_chrome_trace(str(file))


# --------------------------------------------------------------------------- what the work is


def products_per_token(config: RunConfig, vocab_size: int, micro: int) -> float:
    """Multiply-adds of the matrix products in a forward pass, per target token.

    `micro`: sequences per micro-batch, which share the projected positions. Tokens are assumed to follow Zipf's law.
    """
    model, geometry = config.model, train_geometry(config)
    T = geometry.tgt_len + geometry.ext_len
    K, D, W = T + geometry.mem_len, model.d_model, model.n_head * model.d_head
    projects_distances = model.positions.facts.projects_distances
    projections = D * W * (2 * T + 2 * K + (K / micro if projects_distances else 0)) + 2 * T * D * model.d_inner
    scores = (3 if projects_distances else 2) * T * K * W
    words = 1 / np.arange(1, vocab_size + 1)
    edges = [0, *(config.data.cutoffs if model.adaptive else []), vocab_size]
    softmax, width = (edges[1] + len(edges) - 2) * (model.d_embed or D), model.d_embed or D
    for i, (begin, end) in enumerate(zip(edges[1:-1], edges[2:], strict=True), start=1):
        softmax += words[begin:end].sum() / words.sum() * (end - begin) * (width // model.div_val**i)
    if config.train.sampled_softmax:
        softmax = (config.train.sampled_softmax + 1) * width
    return model.n_layer * (projections + scores) / geometry.tgt_len + softmax


def matmul_speed(precision: Arithmetic, device: torch.device) -> float:
    """FLOP/s of one large matrix product, the best of several: what this machine reaches now."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=parameter_dtype(precision)).unbind()
    if precision in AUTOCAST:
        a, b = a.to(AUTOCAST[precision]), b.to(AUTOCAST[precision])
    best, began = float("inf"), synchronized_clock()
    while synchronized_clock() - began < 0.5:
        begin = synchronized_clock()
        linear(a, b)
        best = min(best, synchronized_clock() - begin)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: of torch's allocator on a GPU, of the whole process since its start on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
