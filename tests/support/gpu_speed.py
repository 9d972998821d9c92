"""The steps of tests/gpu_check.py that measure."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.gpu_rows import Rows
from tests.support.gpu_trainer import (
    benchmark_config,
    clean_up,
    device_of,
    draw_weights,
    drawn_on_the_gpu,
    made_trainer,
)
from tests.support.interpreted_kernels import interpreter_fault
from txl.bench.inference import build_benchmark_model, measure_inference
from txl.bench.train_step import configure_train_row, measure_train_row
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.config.schema import Runtime
from txl.evaluate.kv_cache import CachedTransformerXL, GraphedTransformerXL
from txl.model.attention import attention_with_bias, relative_shift
from txl.model.fused_attention import relative_attention
from txl.model.transformer import TransformerXL
from txl.system.hardware import visible_gpus
from txl.system.precision import autocast
from txl.system.timing import synchronize
from txl.system.world import World


def probe(rows: Rows) -> None:
    """What the device is, what it copies and multiplies."""
    device, size = device_of(rows.tiny), 128 if rows.tiny else 8192
    gpus = visible_gpus()
    rows.add(
        device="cpu" if rows.tiny else torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda,
        triton=__import__("triton").__version__, python=sys.version.split()[0], driver=gpus[0].driver if gpus else None,
    )  # fmt: skip
    x = torch.randn(2**10 if rows.tiny else 2**30, device=device)
    y = torch.empty_like(x)
    rows.add(what="copy", tb_per_second=2 * x.numel() * 4 / seconds_of(lambda x=x, y=y: y.copy_(x)) / 1e12)
    del x, y
    for dtype, mode in ((torch.bfloat16, "highest"), (torch.float32, "high")):
        torch.set_float32_matmul_precision(mode)
        a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
        tflops = 2 * size**3 / seconds_of(lambda a=a, b=b: a @ b.t()) / 1e12
        rows.add(what="product", dtype=str(dtype), products=mode, tflops=tflops)
    # bf16 rows of 19,997 columns do not begin at multiples of 16 bytes. What does that cost?
    for columns in (99, 128) if rows.tiny else (19_997, 20_032):
        x, w = (torch.randn(rows_, 512, device=device).bfloat16() for rows_ in (size, columns))
        p = x @ w.t()
        products: dict[str, Callable[[], Any]] = {
            "logits": lambda x=x, w=w: x @ w.t(), "grad_w": lambda x=x, p=p: p.t() @ x, "grad_x": lambda p=p, w=w: p @ w
        }  # fmt: skip
        for what, product in products.items():
            tflops = 2 * size * 512 * columns / seconds_of(product) / 1e12
            rows.add(what=f"softmax's {what}", columns=columns, tflops=tflops)


def seconds_of(work: Callable[[], Any], repeat: int = 10) -> float:
    """Seconds of one call, without waiting between the calls."""
    for _ in range(min(3, repeat)):
        work()
    synchronize()
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    synchronize()
    return (time.perf_counter() - began) / repeat


def attention(rows: Rows) -> None:
    """What one layer's attention takes, alone: batch, heads, queries, keys, dropout of base and large."""
    shapes = {"base": (64, 8, 192, 384, 0.0), "large": (16, 16, 384, 768, 0.2)}
    device = device_of(rows.tiny)
    for name, (B, N, T, K, dropatt) in ({"tiny": (1, 2, 4, 8, 0.2)} if rows.tiny else shapes).items():
        for how in ("sdpa", "eager") if rows.tiny and interpreter_fault() else ("triton", "sdpa", "eager"):
            with rows.guarded(model=name, how=how):
                dtype = torch.float32 if rows.tiny else torch.bfloat16
                made = [torch.randn(B, n, N, 64, device=device, dtype=dtype).transpose(1, 2) for n in (T, K, K)]
                made.append(torch.randn(N, B, T, K, device=device, dtype=dtype).transpose(0, 1))
                leaves = [x.detach().requires_grad_() for x in made]

                def forward(leaves=leaves, how=how, dropatt=dropatt, K=K) -> torch.Tensor:
                    if how == "triton":
                        return relative_attention(*leaves, None, dropatt)
                    bias = relative_shift(leaves[3], K, None)
                    return attention_with_bias(*leaves[:3], bias, dropatt, AttentionBackend[how])

                weights = torch.randn_like(forward())
                both = seconds_of(lambda f=forward, x=leaves, w=weights: torch.autograd.grad(f(), x, w))
                one = seconds_of(lambda f=forward: f().detach())
                rows.add(model=name, how=how, forward_ms=1e3 * one, forward_backward_ms=1e3 * both)
            clean_up()


TRAIN = [  # model, precision, micro batch, attention, compile; the most important first: as many as time allows
    ("base", "bf16", 128, "triton", True), ("large", "bf16", 32, "triton", True),
    ("base", "bf16", 128, "triton", False), ("large", "bf16", 32, "sdpa", True), ("large", "bf16", 32, "eager", True),
    ("base", "bf16", 128, "eager", True), ("base", "bf16", 32, "triton", True),
    ("base", "bf16", 32, "triton", "graphs"), ("base", "bf16", 16, "triton", True),
    ("base", "bf16", 16, "triton", "graphs"), ("large", "bf16", 64, "triton", True),
    ("base", "bf16", 256, "triton", True), ("base", "bf16", 128, "sdpa", True), ("large", "bf16", 16, "triton", True),
    ("base", "fp16", 128, "triton", True), ("large", "fp16", 32, "triton", True),
    ("base", "bf16", 32, "triton", False), ("base", "bf16", 32, "eager", False), ("base", "tf32", 64, "triton", True),
    ("large", "tf32", 16, "eager", True), ("base", "fp32", 32, "eager", False),
]  # fmt: skip
TINY_TRAIN = [("base", "bf16", 2, "eager", False)]


def train(rows: Rows) -> None:
    """Training steps: tokens per second, the parts, the share of the ceiling, the memory beside the plan's."""
    for case in TINY_TRAIN if rows.tiny else TRAIN:
        model, precision, micro, how, compile = case
        if not rows.has_time(15, case=str(case)):
            continue
        with rows.guarded(case=str(case)), pytest.MonkeyPatch.context() as patch:
            drawn_on_the_gpu(patch, rows.tiny)
            config = benchmark_config(
                rows.tiny, model, f"precision={precision}", f"attention={how}", f"compile={str(compile).lower()}",
                f"benchmark.steps={1 if rows.tiny else 10}",
            )  # fmt: skip
            try:
                row = measure_train_row(
                    configure_train_row(config, Arithmetic[precision], micro, World()), World(), device_of(rows.tiny)
                )
            except torch.OutOfMemoryError:
                rows.add(case=str(case), skipped="does not fit into the memory")
                clean_up()
                continue
            values = vars(row) | {f"{part}_ms": 1e3 * seconds for part, seconds in row.part_seconds.items()}
            del values["part_seconds"]
            rows.add(**values, ok=row.programs == int(bool(compile)))


def warm(rows: Rows) -> None:
    """Compile what `train` will run first, beside the checks: its programs come from the caches on disk then."""
    for case in TINY_TRAIN if rows.tiny else TRAIN[:2]:
        model, precision, micro, how, compile = case
        with rows.guarded(case=str(case)):
            options = [f"precision={precision}", f"attention={how}", f"compile={str(compile).lower()}"]
            trainer = made_trainer(rows.tiny, model, micro, 4, *options)
            began = time.perf_counter()
            for _ in range(3):
                trainer.step()
            synchronize()
            rows.add(case=str(case), seconds_of_three_steps=time.perf_counter() - began)
            del trainer
            clean_up()


def profile(rows: Rows) -> None:
    """The kernels that take the time, as a table: a trace of a step is large."""
    for case in TINY_TRAIN if rows.tiny else TRAIN[:2]:
        model, precision, micro, how, compile = case
        if not rows.has_time(15, case=str(case)):
            continue
        with rows.guarded(case=str(case)):
            options = [f"precision={precision}", f"attention={how}", f"compile={str(compile).lower()}"]
            trainer = made_trainer(rows.tiny, model, micro, 8, *options)
            for _ in range(1 if rows.tiny else 4):
                trainer.step()
            synchronize()
            kind = torch.profiler.ProfilerActivity.CPU if rows.tiny else torch.profiler.ProfilerActivity.CUDA
            with torch.profiler.profile(activities=[kind]) as seen:
                for _ in range(2):
                    trainer.step()
                synchronize()
            time_of = "self_cpu_time_total" if rows.tiny else "self_device_time_total"
            found = [(event.key, event.count / 2, getattr(event, time_of) / 2e3) for event in seen.key_averages()]
            found.sort(key=lambda event: -event[2])
            total, launches = sum(event[2] for event in found), sum(event[1] for event in found)
            rows.add(case=str(case), kernels_ms=total, launches=launches)
            for name, count, ms in found[: 3 if rows.tiny else 25]:
                rows.add(kernel=name[:110], launches=count, ms=ms)
            del trainer
            clean_up()


def inference(rows: Rows) -> None:
    """Latency and throughput of the runtimes; graphs compute what the cached runtime does."""
    for name, sizes in (("base", (1, 32)), ("large", (1,)))[: 1 if rows.tiny else 2]:
        config = benchmark_config(rows.tiny, name)
        e = config.evaluation
        geometry = Geometry(e.tgt_len, e.mem_len, e.ext_len, e.clamp_len, e.same_length)
        for precision in (Arithmetic.bf16,) if rows.tiny else (Arithmetic.bf16, Arithmetic.fp16):
            with pytest.MonkeyPatch.context() as patch:
                drawn_on_the_gpu(patch, rows.tiny)
                model = build_benchmark_model(config, device_of(rows.tiny), precision)
            draw_weights(model)
            runtimes = ["cached", "graphs", "eager", "compile"] if precision is Arithmetic.bf16 else ["graphs"]
            for runtime in ["cached"] if rows.tiny else runtimes:
                for batch_size in sizes:
                    case = {"model": name, "runtime": runtime, "batch_size": batch_size}
                    if not rows.has_time(10, **case):
                        continue
                    with rows.guarded(**case):
                        clean_up()
                        segments = 2 if rows.tiny else 30
                        row = measure_inference(model, geometry, Runtime[runtime], batch_size, precision, segments)
                        latency = {f"ms_{key}": value for key, value in row.pop("latency_ms").items()}
                        rows.add(model=name, **row, **latency)
            if not rows.tiny and rows.has_time(10, what="graphs equal cached"):
                with rows.guarded(what="graphs equal cached"):
                    apart = graphs_apart_from_cached(model, geometry, precision)
                    rows.add(what="graphs equal cached", model=name, precision=precision.name, apart=apart,
                             ok=apart < 1e-2)  # fmt: skip
            del model
            clean_up()


@torch.no_grad()
def graphs_apart_from_cached(model: TransformerXL, geometry: Geometry, precision: Arithmetic) -> float:
    """Largest difference of a hidden state between both runtimes, over thirty segments of two texts."""
    ids = torch.randint(model.vocab_size, (2, geometry.tgt_len * 30), device="cuda")
    found = []
    for kind in (CachedTransformerXL, GraphedTransformerXL):
        runtime, memory, hidden = kind(model, geometry), [], []
        for segment in ids.split(geometry.tgt_len, 1):
            with autocast(precision, torch.device("cuda")):  # one context for each segment, as an evaluation has it
                states, memory = runtime(segment, memory, geometry)
            hidden.append(states.float())
        found.append(torch.cat(hidden, 1))
    return (found[0] - found[1]).abs().max().item()


REFERENCE_RUNS = ("train batch=32 dtype=fp16", "train batch=128 dtype=fp16", "eval batch=1 dtype=fp16")
REFERENCE_RUNS += ("eval batch=32 dtype=fp16", "train batch=16 dtype=fp16 model=large")


def reference(rows: Rows) -> None:
    """Another implementation beside ours, if its folder was given."""
    if rows.reference is None:
        return rows.add(skipped="no --reference was given")
    for options in REFERENCE_RUNS:
        if not rows.has_time(20, options=options):
            continue
        with rows.guarded(options=options):
            command = [sys.executable, str(rows.reference / "speed.py"), *options.split(), "device=cuda", "segments=12"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(5, rows.left()))
            if done.returncode:
                rows.add(options=options, failed=done.stderr[-400:])
            else:
                rows.add(**json.loads(done.stdout.splitlines()[-1]))
    return None
