"""The rules between values: which configurations make sense.

Everything here is decided from the configuration alone: no disk, no device, no torch.
"""

import json
import math
import os
import re
from operator import attrgetter
from typing import Any

from omegaconf import MISSING

from txl.config.compose import Config, to_dict
from txl.config.data import VocabKind
from txl.config.machine import ClusterConfig
from txl.config.model import AttentionBackend, ModelConfig
from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.config.precision import Arithmetic
from txl.config.scheduler import SchedulerName
from txl.config.schema import BenchmarkConfig, EvaluateConfig, RunConfig, Runtime, Suite, Task, Then
from txl.config.training import VARLEN_SHORTEST
from txl.errors import ConfigError

# --------------------------------------------------------------------------- one value at a time

ABOVE_ZERO = """
    model.n_layer model.n_head model.d_model model.d_head model.d_inner model.d_embed model.div_val
    data.max_size data.vocab_size data.max_bytes data.shards
    train.batch_size train.local_batch_size train.micro_batch_size train.grad_accum_steps train.max_step train.tgt_len
    train.first_rank_batch_size train.log_interval train.time_limit_minutes
    train.sampled_softmax train.target_throughput train.target_perplexity
    valid.interval valid.batch_size valid.tgt_len valid.max_steps
    evaluation.tgt_len evaluation.batch_size checkpoint.minutes checkpoint.keep
    optimizer.lr scheduler.max_step precision.initial_loss_scale hardware.memory_gb nodes gpus
"""


ZERO_OR_MORE = """
    model.init_std model.init_range model.emb_init_range model.proj_init_std data.min_freq
    train.mem_len train.ext_len train.clip evaluation.mem_len evaluation.ext_len checkpoint.interval
    optimizer.weight_decay optimizer.eps scheduler.warmup_step scheduler.eta_min scheduler.patience scheduler.lr_min
    hardware.gpus seed sample_tokens
"""


OWN_FILES = {"metrics.jsonl", "train.log", "config.yaml", "plan.json", "environment.json", "summary.json", "start.json"}


BELOW_ONE = "model.dropout model.dropatt optimizer.momentum"


EVALUATE_ABOVE_ZERO = """
    tgt_len batch_size max_steps repeat log_interval gpus target_perplexity target_throughput
    max_tokens temperature top_k top_p
"""


EVALUATE_ZERO_OR_MORE = "mem_len ext_len seed"


def refuse_unless(ok: bool, key: str, value: Any, rule: str) -> None:
    """`rule` goes on where `key=value` ends, and names the remedy."""
    if not ok:
        raise ConfigError(f"{key}={shown(value)} {rule}")


def any_of(words: list[str]) -> str:
    """["a", "b", "c"] -> `a, b or c`"""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def shown(value: Any) -> str:
    """As one would write it on the command line."""
    plain = to_dict(value)
    if isinstance(plain, str):
        return plain
    return json.dumps(plain).replace('"', "").replace(" ", "")


def check_bounds(config: Any, above_zero: str, zero_or_more: str) -> None:
    for key in above_zero.split():
        value = attrgetter(key)(config)
        refuse_unless(value is None or 0 < value < math.inf, key, value, "must be above 0")
    for key in zero_or_more.split():
        value = attrgetter(key)(config)
        refuse_unless(value is None or 0 <= value < math.inf, key, value, "must be 0 or more")


# --------------------------------------------------------------------------- validation


def validate(config: Config) -> Config:
    """The same configuration; ConfigError for the first value or combination that cannot work."""
    if isinstance(config, RunConfig):
        check_run_config(config)
        if isinstance(config, BenchmarkConfig):
            check_benchmark(config)
    else:
        check_evaluate_config(config)
    return config


def check_run_config(config: RunConfig) -> None:
    check_bounds(config, ABOVE_ZERO, ZERO_OR_MORE)
    for key in BELOW_ONE.split():
        value = attrgetter(key)(config)
        refuse_unless(value is None or 0 <= value < 1, key, value, "must be at least 0 and below 1")
    check_model(config)
    check_data(config)
    check_lengths(config)
    check_batch(config)
    check_without_validation(config)
    check_optimizer(config)
    check_sampled_softmax(config)
    check_scheduler(config)
    check_machine(config)
    check_speed(config)
    check_run(config)


def check_benchmark(config: BenchmarkConfig) -> None:
    processes = config.benchmark.processes
    rule = "is for this machine; under cluster=slurm nodes= and gpus= say how many"
    refuse_unless(processes is None or config.cluster.name != "slurm", "benchmark.processes", processes, rule)
    for key in ("batch_sizes", "micro_batch_sizes", "runtimes", "precisions"):
        value = getattr(config.benchmark, key)
        refuse_unless(len(value) > 0, f"benchmark.{key}", value, "is empty: name at least one")
    for key in ("batch_sizes", "micro_batch_sizes", "processes"):
        sizes = getattr(config.benchmark, key)
        refuse_unless(sizes is None or min(sizes, default=0) > 0, f"benchmark.{key}", sizes, "must all be above 0")
    for key in ("segments", "steps", "megabytes"):
        value = getattr(config.benchmark, key)
        refuse_unless(value > 0, f"benchmark.{key}", value, "must be above 0")
    made_up = config.suite is Suite.train
    rule = "but a benchmark makes its tokens up; use data.vocab_size=50000"
    refuse_unless(not made_up or config.data.vocab_size is not None, "data.vocab_size", config.data.vocab_size, rule)
    value = config.benchmark.warmup_steps
    refuse_unless(value >= 0, "benchmark.warmup_steps", value, "must be 0 or more")
    rule = "has no meaning for a benchmark, whose segments have one length; leave it out"
    refuse_unless(not config.train.varlen, "train.varlen", config.train.varlen, rule)


def check_evaluate_config(config: EvaluateConfig) -> None:
    check_bounds(config, EVALUATE_ABOVE_ZERO, EVALUATE_ZERO_OR_MORE)
    check_clamp("clamp_len", config.clamp_len)
    check_arithmetic(config)
    within = len(config.percentiles) > 0 and all(0 <= percent <= 100 for percent in config.percentiles)
    rule = "must be numbers from 0 to 100, such as [50,90,95,99]"
    refuse_unless(within, "percentiles", config.percentiles, rule)
    rule = "is a probability: above 0, at most 1"
    refuse_unless(config.top_p is None or config.top_p <= 1, "top_p", config.top_p, rule)
    both = "excludes prompts: give one text, or a file of them"
    refuse_unless(config.prompt is None or config.prompts is None, "prompt", config.prompt, both)
    refuse_unless(config.prompt is None or config.prompt.strip(), "prompt", "''", "is empty: write how the text begins")
    refuse_unless(config.text is None or config.text.strip(), "text", "''", "is empty: there is nothing to evaluate")
    if config.task is Task.generate:
        given = config.prompt is not None or config.prompts is not None
        refuse_unless(given, "task", config.task, 'needs a beginning: prompt="...", or prompts=FILE')
        steps = config.runtime in (Runtime.auto, Runtime.eager, Runtime.cached)
        refuse_unless(steps, "runtime", config.runtime, "reads whole segments; use runtime=cached for task=generate")
    else:
        given = config.prompt is None and config.prompts is None
        refuse_unless(given, "task", config.task, "reads no prompt; use task=generate")
    programs = config.runtime in (Runtime.torchscript, Runtime.export)
    refuse_unless(config.program is None or programs, "program", config.program, "needs runtime=torchscript or export")


def check_architecture(config: Any) -> None:
    """Of `config.model` with `config.data`, wherever they come from."""
    above_zero, zero_or_more = (" ".join(re.findall(r"model\.\w+", keys)) for keys in (ABOVE_ZERO, ZERO_OR_MORE))
    check_bounds(config, above_zero, zero_or_more)
    check_model(config)


def check_model(config: RunConfig) -> None:
    model, cutoffs = config.model, config.data.cutoffs
    even = model.positions.facts.even_width
    if even is not None:
        width = getattr(model, even)
        rule = f"must be even for the sinusoids of model.positions={model.positions.name}; use {width + 1}"
        refuse_unless(width % 2 == 0, f"model.{even}", width, rule)
    refuse_unless(len(model.tie_projs) > 0, "model.tie_projs", model.tie_projs, "needs an entry; use [false]")
    width, key = model.d_embed or model.d_model, "model.d_embed" if model.d_embed else "model.d_model"
    if not model.adaptive:
        rule = "needs model.adaptive=true: only clusters can be narrower; use model.div_val=1"
        refuse_unless(model.div_val == 1, "model.div_val", model.div_val, rule)
    rule = f"leaves cluster {len(cutoffs)} of data.cutoffs no width: {key}={width} is too small for it; lower it"
    refuse_unless(width // model.div_val ** len(cutoffs) >= 1, "model.div_val", model.div_val, rule)


def check_data(config: RunConfig) -> None:
    data = config.data
    edges = [0, *data.cutoffs]
    rising = all(a < b for a, b in zip(edges[:-1], edges[1:], strict=True))
    refuse_unless(rising, "data.cutoffs", data.cutoffs, "must rise from above 0, such as [20000,40000,200000]")
    if data.vocab_size and data.cutoffs:
        rule = f"must end below data.vocab_size={data.vocab_size}"
        refuse_unless(data.cutoffs[-1] < data.vocab_size, "data.cutoffs", data.cutoffs, rule)
    whole = len(data.split) in (2, 3) and min(data.split) > 0 and math.isclose(sum(data.split), 1, abs_tol=1e-6)
    rule = "must be two or three fractions above 0 (train, valid, test) whose sum is 1, such as [0.9,0.05,0.05]"
    refuse_unless(whole, "data.split", data.split, rule)
    cut = not data.split_bytes or (len(data.split_bytes) == 3 and min(data.split_bytes) > 0)
    refuse_unless(cut, "data.split_bytes", data.split_bytes, "must be three sizes above 0: train, valid, test")
    check_vocabulary(config)
    check_files(config)


def check_vocabulary(config: RunConfig) -> None:
    data, kind = config.data, config.data.vocab
    plain = {"lower_case": False, "min_freq": 0, "max_size": None, "eos": "<eos>", "unk": "<unk>", "sentences": False}
    for key, default in plain.items():
        value = getattr(data, key)
        rule = f"is for words; leave it out with data.vocab={kind.name}"
        refuse_unless(value == default or kind is VocabKind.word, f"data.{key}", value, rule)
    for key in ("eos", "unk"):
        value = getattr(data, key)
        refuse_unless(value.split() == [value], f"data.{key}", f"{value!r}", "must be one word")
    refuse_unless(data.eos != data.unk, "data.unk", data.unk, "must be another word than data.eos")
    files = {"vocab_file": (VocabKind.word, VocabKind.bpe), "merges_file": (VocabKind.bpe,)}
    for key, kinds in files.items():
        value = getattr(data, key)
        rule = f"has no meaning for data.vocab={kind.name}; leave it out"
        refuse_unless(value is None or kind in kinds, f"data.{key}", value, rule)
        rule = "is needed by data.vocab=bpe: GPT-2's two files, or others like them (python -m txl.download gpt2)"
        refuse_unless(value is not None or kind is not VocabKind.bpe, f"data.{key}", value, rule)
    for key in ("min_freq", "max_size"):
        value = getattr(data, key)
        rule = f"chooses among the words of train, but data.vocab_file={data.vocab_file} says which there are; use one"
        refuse_unless(not value or data.vocab_file is None, f"data.{key}", value, rule)


def check_files(config: RunConfig) -> None:
    data = config.data
    for key in ("train", "valid", "test"):
        value = getattr(data, key)
        rule = "excludes data.file: give three files, or one and data.split"
        refuse_unless(value is None or data.file is None, f"data.{key}", value, rule)
    found_elsewhere = data.path is not None or data.max_bytes is not None  # in a folder; made on first use
    if data.file is None and not found_elsewhere:
        for key in ("train", "valid"):
            rule = (
                f"but data={data.name} needs files: data.train=a.txt data.valid=b.txt data.test=c.txt, "
                "or data.file=a.txt data.split=[0.9,0.05,0.05]"
            )
            refuse_unless(getattr(data, key) is not None, f"data.{key}", None, rule)


def check_lengths(config: RunConfig) -> None:
    train, valid, evaluation = config.train, config.valid, config.evaluation
    check_clamp("train.clamp_len", train.clamp_len, config.model)
    check_clamp("evaluation.clamp_len", evaluation.clamp_len, config.model)
    for name, section in (("train", train), ("evaluation", evaluation)):
        rule = f"needs a memory; set {name}.mem_len above 0, or leave it out"
        refuse_unless(section.mem_len > 0 or not section.same_length, f"{name}.same_length", True, rule)
    other = "mem_len" if train.mem_len else "ext_len"
    most = train.tgt_len + getattr(train, other)
    rule = f"must be at most train.tgt_len + train.{other} = {most}: validation sees no further than training"
    refuse_unless(valid.tgt_len <= most, "valid.tgt_len", valid.tgt_len, rule)
    rule = f"draws lengths of {VARLEN_SHORTEST} and more around train.tgt_len={train.tgt_len}; raise it to that"
    refuse_unless(not train.varlen or train.tgt_len >= VARLEN_SHORTEST, "train.varlen", train.varlen, rule)


def check_batch(config: RunConfig) -> None:
    train = config.train
    steps, micro, first = train.grad_accum_steps, train.micro_batch_size, train.first_rank_batch_size
    rule = f"excludes train.micro_batch_size={micro}, from which it follows: give one of them"
    refuse_unless(steps is None or micro is None, "train.grad_accum_steps", steps, rule)
    if first is not None:
        rule = "excludes train.local_batch_size, which is the same for every process; use train.batch_size"
        refuse_unless(train.local_batch_size is None, "train.first_rank_batch_size", first, rule)
        rule = f"must be below train.batch_size={train.batch_size}, which all processes share; lower it"
        refuse_unless(first < train.batch_size, "train.first_rank_batch_size", first, rule)


def check_without_validation(config: RunConfig) -> None:
    if config.valid.enabled:
        return
    plateau, target = config.scheduler.name is SchedulerName.dev_perf, config.train.target_perplexity
    rule = "leaves scheduler=dev_perf nothing to follow; use another scheduler, or valid.enabled=true"
    refuse_unless(not plateau, "valid.enabled", False, rule)
    rule = "excludes then=evaluate: leave one of them out"
    refuse_unless(config.then is Then.nothing, "valid.enabled", False, rule)
    rule = f"excludes train.target_perplexity={target:g}: leave one of them out" if target else ""
    refuse_unless(target is None, "valid.enabled", False, rule)


def check_clamp(key: str, value: int | None, model: ModelConfig | None = None) -> None:
    refuse_unless(value is None or value == -1 or value > 0, key, value, "must be above 0, or -1 for no clamping")
    reason = model.positions.facts.clamp_refusal if model else None
    if model and reason:
        rule = f"has no meaning for model.positions={model.positions.name}: {reason}; use {key}=-1"
        refuse_unless(value in (None, -1), key, value, rule)


def check_optimizer(config: RunConfig) -> None:
    optimizer, name = config.optimizer, config.optimizer.name
    needed = name.facts.options
    if "betas" in needed:
        valid = len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas)
        rule = "must be two numbers, each at least 0 and below 1, such as [0.9,0.999]"
        refuse_unless(valid, "optimizer.betas", optimizer.betas, rule)
    for key, plain in vars(OptimizerConfig()).items():
        if plain == MISSING:  # an option of every optimizer
            continue
        value, used = getattr(optimizer, key), key in needed
        rule = f"has no meaning for optimizer={name.name}; leave it out"
        refuse_unless(used or value == plain, f"optimizer.{key}", value, rule)
        refuse_unless(
            not used or value != plain, f"optimizer.{key}", value, f"is needed by optimizer={name.name}; give it"
        )


def check_sampled_softmax(config: RunConfig) -> None:
    key, count, decay = "train.sampled_softmax", config.train.sampled_softmax, config.optimizer.weight_decay
    if count is None:
        return
    whole = not config.model.adaptive or not config.data.cutoffs
    rule = f"needs one softmax, and data.cutoffs={shown(config.data.cutoffs)} divide it; use model.adaptive=false"
    refuse_unless(whole, key, count, rule)
    reason = config.optimizer.name.facts.sparse_refusal
    able = [name.name for name in OptimizerName if name.facts.sparse_refusal is None]
    rule = f"steps drawn rows only, but optimizer={config.optimizer.name.name} {reason}; use optimizer={any_of(able)}"
    refuse_unless(reason is None, key, count, rule)
    rule = f"excludes optimizer.weight_decay={decay:g}: rows would decay only when they are drawn; use 0"
    refuse_unless(decay == 0, key, count, rule)


def check_scheduler(config: RunConfig) -> None:
    scheduler, name, lr = config.scheduler, config.scheduler.name, config.optimizer.lr
    if name is SchedulerName.cosine:
        owner = "scheduler" if scheduler.max_step else "train"
        length = scheduler.max_step or config.train.max_step
        rule = (
            f"must be below {owner}.max_step={length}, where the cosine ends; lower it, or set scheduler.max_step "
            "to the length of the whole curve"
        )
        refuse_unless(scheduler.warmup_step < length, "scheduler.warmup_step", scheduler.warmup_step, rule)
        rule = f"must be at most optimizer.lr={lr:g}, from where the cosine falls; lower it"
        refuse_unless(scheduler.eta_min <= lr, "scheduler.eta_min", scheduler.eta_min, rule)
    plateau = name is SchedulerName.dev_perf
    for key in ("decay_rate", "patience", "lr_min"):
        value = getattr(scheduler, key)
        refuse_unless(plateau or value is None, f"scheduler.{key}", value, f"has no meaning for scheduler={name.name}")
        refuse_unless(not plateau or value is not None, f"scheduler.{key}", value, "is needed by scheduler=dev_perf")
    if plateau:
        refuse_unless(0 < scheduler.decay_rate < 1, "scheduler.decay_rate", scheduler.decay_rate, "must be in (0,1)")
        rule = f"must be below train.max_step={config.train.max_step}: scheduler=dev_perf needs validations; lower it"
        refuse_unless(config.valid.interval < config.train.max_step, "valid.interval", config.valid.interval, rule)


def check_arithmetic(config: RunConfig | EvaluateConfig) -> None:
    hardware, arithmetic = config.hardware, config.precision.name
    if hardware.gpus == 0:
        check_cpu_arithmetic(arithmetic, f"hardware={hardware.name}")
    old = re.match("V100|T4", hardware.gpu or "")
    rule = f"needs an Ampere or newer GPU, but hardware={hardware.name} has {hardware.gpu}; use precision=fp32 or fp16"
    refuse_unless(not old or arithmetic is not Arithmetic.tf32, "precision", arithmetic, rule)
    scale = config.precision.initial_loss_scale
    rule = "is for precision=fp16 alone, and needed there"
    refuse_unless((scale is None) != (arithmetic is Arithmetic.fp16), "precision.initial_loss_scale", scale, rule)


def check_machine(config: RunConfig) -> None:
    check_arithmetic(config)
    here = config.cluster.name == "local" and not {"RANK", "SUBMITIT_EXECUTOR"} & set(os.environ)
    rule = "needs a launcher that starts every node, and cluster=local is this machine; use cluster=slurm or torchrun"
    refuse_unless(config.nodes == 1 or not here or config.dry_run, "nodes", config.nodes, rule)
    check_cluster(config)


def check_cluster(config: RunConfig) -> None:
    cluster = config.cluster
    known = cluster.name in ("local", "slurm", "srun")
    refuse_unless(known, "cluster.name", cluster.name, "must be local, slurm or srun")
    if cluster.name != "slurm":
        plain = ClusterConfig(name=cluster.name)
        for key, value in vars(cluster).items():
            rule = f"has no meaning for cluster={cluster.name}; use cluster=slurm"
            refuse_unless(value == getattr(plain, key), f"cluster.{key}", value, rule)
        return
    for key in ("minutes", "signal_delay", "max_timeouts"):
        value = getattr(cluster, key)
        refuse_unless(value is not None and value > 0, f"cluster.{key}", value, "must be above 0")
    most = 30 * cluster.minutes
    rule = f"must be at most {most}, half of cluster.minutes={cluster.minutes}: the rest is for starting and training"
    refuse_unless(cluster.signal_delay <= most, "cluster.signal_delay", cluster.signal_delay, rule)
    for key in ("cpus_per_task", "mem_gb"):
        value = getattr(cluster, key)
        refuse_unless(value is None or value > 0, f"cluster.{key}", value, "must be above 0")
    for key in ("sbatch", "srun"):
        for flag in getattr(cluster, key):
            rule = f"must be flags such as --exclusive or --cpu-bind=cores: 'cluster.{key}=[\"--exclusive\"]'"
            refuse_unless(flag.startswith("-"), f"cluster.{key}", flag, rule)
    rule = "asks the machine, and the nodes are not this one; use hardware=dgx2 (dgx1, dgxa100, cpu, ...)"
    refuse_unless(config.hardware.gpus is not None, "hardware", config.hardware.name, rule)


def check_cpu_arithmetic(arithmetic: Arithmetic, machine: str) -> None:
    """Also for plan.py, where `hardware=auto` turns out to be a CPU."""
    remedy = {Arithmetic.fp16: "precision=bf16 or precision=fp32", Arithmetic.tf32: "precision=fp32"}
    rule = f"needs a GPU, and {machine} has none; use {remedy.get(arithmetic)}"
    refuse_unless(arithmetic not in remedy, "precision", arithmetic, rule)


def check_speed(config: RunConfig) -> None:
    fused, arithmetic = config.attention is AttentionBackend.triton, config.precision.name
    rule = f"computes in float32 at most, not precision={arithmetic.name}; use attention=eager"
    refuse_unless(not fused or arithmetic is not Arithmetic.fp64, "attention", config.attention, rule)
    rule = f"needs a GPU, and hardware={config.hardware.name} has none; use attention=auto"
    refuse_unless(not fused or config.hardware.gpus != 0, "attention", config.attention, rule)
    refuse_unless(config.compile in (True, False, "auto"), "compile", config.compile, "must be true, false or auto")


def check_run(config: RunConfig) -> None:
    plain = re.fullmatch(r"\w[\w.,=+-]*", config.name)
    refuse_unless(bool(plain), "name", config.name, "must be one folder name of letters, digits and . , = + - _")
    rule = "leaves no run folder, which a SLURM job needs; use cluster=local, or leave it out"
    refuse_unless(not config.debug or config.cluster.name != "slurm", "debug", True, rule)
    rule = "would move what was saved in that run folder; leave debug=true out"
    refuse_unless(not config.debug or config.resume in (None, "auto"), "resume", config.resume, rule)
    file = config.tracking.dllogger
    free = file is None or (re.fullmatch(r"\w[\w.-]*", file) and file not in OWN_FILES)
    rule = "must be the name of a file in the run folder that nothing else writes; use train_log.json"
    refuse_unless(bool(free), "tracking.dllogger", file, rule)
    for key in ("resume", "init_from", "run_dir", "runs"):
        value = getattr(config, key)
        refuse_unless(value is None or bool(value.strip()), key, "''", "must name a folder; leave it out otherwise")
