"""The plan of a run: how the batch is split, how big the model is, what it costs. Nothing here imports torch.

`print(make_plan(config))` is what `dry_run=true` shows; `Plan.to_dict()` goes into the run folder.
"""

import os
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from txl.choices import Arithmetic, AttentionBackend, OptimizerName, Positions
from txl.config import DataConfig, ModelConfig, RunConfig, TrainConfig, is_multi_node, longest_context
from txl.errors import ConfigError
from txl.hardware import detect
from txl.rules import check_cpu_arithmetic
from txl.run_identity import config_hash

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """What follows from a configuration on a machine."""

    run_dir: str
    debug: bool  # nothing is written there
    recipe: str  # single_node or multi_node: which of the published values hold
    nodes: int
    gpus_per_node: int  # processes, on a CPU
    gpu: str | None  # None: what the machine has
    world_size: int
    local_batch_size: int  # sequences per process and step
    first_rank_batch_size: int  # ... of the first process
    micro_batch_size: int  # ... and forward pass
    grad_accum_steps: int
    tokens_per_step: int
    max_step: int
    total_tokens: int
    parameters: int | None  # None: the vocabulary is not built yet
    layer_parameters: int
    memory_gb: float | None  # estimate, per process
    device_memory_gb: float | None

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        size = f"{self.parameters:,} parameters" if self.parameters else "vocabulary not built yet"
        memory = "vocabulary not built yet" if self.memory_gb is None else f"about {self.memory_gb:.1f} GB per process"
        if self.memory_gb and self.device_memory_gb:
            memory += f", of {self.device_memory_gb:g} GB"
        batch = self.first_rank_batch_size + (self.world_size - 1) * self.local_batch_size
        share = f"{self.grad_accum_steps} accumulation step(s) x micro batch {self.micro_batch_size}"
        if self.first_rank_batch_size != self.local_batch_size:
            share += f"; the first: {self.first_rank_batch_size} sequences"
        rows = {
            "run folder": "none: debug=true" if self.debug else self.run_dir,
            "processes": f"{self.world_size} = {self.nodes} node(s) x {self.gpus_per_node} {self.gpu or ''}".rstrip(),
            "recipe": self.recipe,
            "batch": f"{batch} sequences, {self.tokens_per_step:,} tokens per step",
            "per process": share,
            "training": f"{self.max_step:,} steps, {self.total_tokens:,} tokens",
            "model": f"{size}, {self.layer_parameters:,} of them in layers",
            "memory": memory,
        }
        return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


def with_global_batch(config: RunConfig) -> RunConfig:
    """The same run with train.batch_size in place of train.local_batch_size.

    It is the global batch that training computes with, that names the run and that a resume must not change, so it
    takes its place before anything else reads the configuration.
    """
    local = config.train.local_batch_size
    if local is None:
        return config
    nodes, gpus = processes(config)
    train = replace(config.train, batch_size=local * nodes * gpus, local_batch_size=None)
    return replace(config, train=train)


def make_plan(config: RunConfig, vocab_size: int | None = None) -> Plan:
    """Raises ConfigError where nodes, gpus and batch do not fit. `vocab_size` None: as far as it is known."""
    assert config.train.local_batch_size is None, "with_global_batch comes first"
    train, vocab_size = config.train, vocab_size or known_vocab_size(config.data)
    nodes, gpus = processes(config)
    world_size = nodes * gpus
    first, local, micro = split_batch(config, world_size)
    layers = layer_parameters(config.model)
    parameters = memory = None
    if vocab_size:
        if config.model.adaptive and config.data.cutoffs and config.data.cutoffs[-1] >= vocab_size:
            raise ConfigError(
                f"data.cutoffs={config.data.cutoffs} must end below the vocabulary's size {vocab_size}; use fewer, "
                "or data.cutoffs=[]"
            )
        if (train.sampled_softmax or 0) > vocab_size:
            raise ConfigError(
                f"train.sampled_softmax={train.sampled_softmax} must be at most the vocabulary's size {vocab_size}; "
                "lower it, or leave it out"
            )
        parameters = layers + other_parameters(config.model, train, config.data.cutoffs, vocab_size)
        terms = memory_terms(config, vocab_size, parameters, micro, max(first, local), world_size)
        memory = round(sum(terms.values()) / GB, 2)
    tokens = train.batch_size * train.tgt_len
    return Plan(
        run_dir=config.run_dir or str(Path(config.runs) / config.name / f"{config_hash(config)}-s{config.seed}"),
        debug=config.debug,
        recipe="multi_node" if is_multi_node(config.recipe, config.nodes) else "single_node",
        nodes=nodes,
        gpus_per_node=gpus,
        gpu=config.hardware.gpu,
        world_size=world_size,
        local_batch_size=local,
        first_rank_batch_size=first,
        micro_batch_size=micro,
        grad_accum_steps=local // micro,
        tokens_per_step=tokens,
        max_step=train.max_step,
        total_tokens=tokens * train.max_step,
        parameters=parameters,
        layer_parameters=layers,
        memory_gb=memory,
        device_memory_gb=config.hardware.memory_gb,
    )


# --------------------------------------------------------------------------- processes and batch


def processes(config: RunConfig) -> tuple[int, int]:
    """(nodes, processes per node), from the configuration, from torchrun, or from the machine."""
    wanted = config.gpus or config.hardware.gpus or None
    if "WORLD_SIZE" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", wanted or 1))
        for key, value, started in (("nodes", config.nodes, world // local), ("gpus", wanted, local)):
            if value not in (None, started):
                raise ConfigError(f"{key}={value} but the launcher started {started}; set {key}={started}")
        return config.nodes, local
    if config.hardware.gpus is None:
        there = detect()[1]
        if there == 0:
            check_cpu_arithmetic(config.precision.name, "this machine")
        elif config.gpus and config.gpus > there:
            raise ConfigError(f"gpus={config.gpus} but this machine has {there}; use gpus={there} or hardware=cpu")
        wanted = config.gpus or there
    return config.nodes, wanted or 1


def split_batch(config: RunConfig, world_size: int) -> tuple[int, int, int]:
    """(sequences of the first process, of every other, micro batch), which is a divisor of the second.

    first + (world_size - 1) * other = train.batch_size.
    """
    train, batch = config.train, config.train.batch_size
    first, others = train.first_rank_batch_size, world_size - 1
    if first is None:
        if batch % world_size:
            fitting = [g for g in range(1, world_size // config.nodes) if batch % (config.nodes * g) == 0]
            raise ConfigError(
                f"train.batch_size={batch} must be a multiple of world_size = {world_size}; "
                f"use {multiples(batch, world_size)}" + (f", or gpus={fitting[-1]}" if fitting else "")
            )
        first = batch // world_size
    elif others == 0:
        raise ConfigError(f"train.first_rank_batch_size={first} needs several processes; leave it out, or use gpus=2")
    elif (batch - first) % others:
        fitting = [size for size in range(1, batch) if (batch - size) % others == 0]
        near = min(fitting, key=lambda size: abs(size - first), default=None)
        raise ConfigError(
            f"train.first_rank_batch_size={first} leaves {batch - first} of train.batch_size={batch}, no multiple of "
            f"{others}, for the other processes; use " + (f"{near}" if near else f"train.batch_size={first + others}")
        )
    local = (batch - first) // others if others else first
    return first, local, micro_batch_of(config, local, world_size)


def micro_batch_of(config: RunConfig, local: int, world_size: int) -> int:
    """Of a process with `local` sequences per step: as given, or as many as fit."""
    train, steps = config.train, config.train.grad_accum_steps
    if steps:
        if local % steps:
            fitting = " or ".join(str(n) for n in nearest_divisors(local, steps))
            raise ConfigError(
                f"train.grad_accum_steps={steps} must divide the {local} sequences of each process "
                f"(train.batch_size={train.batch_size}); use {fitting}"
            )
        return local // steps
    caps = (train.micro_batch_cap or {}).get(config.hardware.name, {})
    micro = train.micro_batch_size or min(local, caps.get(config.precision.name.name, local))
    if local % micro == 0:
        return micro
    fitting = max(size for size in range(1, micro + 1) if local % size == 0)
    if train.first_rank_batch_size is not None:
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide {local}, what train.first_rank_batch_size="
            f"{train.first_rank_batch_size} leaves for every other process; use {fitting}"
        )
    raise ConfigError(
        f"train.batch_size={train.batch_size} must be a multiple of world_size * micro_batch_size = "
        f"{world_size} * {micro}; use {multiples(train.batch_size, world_size * micro)}, "
        f"or train.micro_batch_size={fitting}"
    )


def nearest_divisors(value: int, to: int) -> list[int]:
    """Of `value`: the largest below `to` and the smallest above it, as far as there are such."""
    divisors = [n for n in range(1, value + 1) if value % n == 0]
    return [n for n in divisors if n < to][-1:] + [n for n in divisors if n > to][:1]


def multiples(value: int, of: int) -> str:
    """The multiples of `of` around a value: `192 or 384`."""
    below = value // of * of
    return f"{below} or {below + of}" if below else str(of)


# --------------------------------------------------------------------------- parameters


def known_vocab_size(data: DataConfig) -> int | None:
    """As encoded before, as data.vocab_file has it, or as conf/data/ says; a plan encodes nothing."""
    if data.vocab_file is None and not Path(data.cache).expanduser().is_dir():
        return data.vocab_size
    from txl.data import encoded_vocab_size, given_vocab_size

    return encoded_vocab_size(data) or given_vocab_size(data) or data.vocab_size


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of all layers: projections of q, k, v, output (and distances), feed-forward, two LayerNorms."""
    width = model.n_head * model.d_head
    attention = (5 if model.positions is Positions.relative else 4) * model.d_model * width
    feed_forward = 2 * model.d_model * model.d_inner + model.d_inner + model.d_model
    return model.n_layer * (attention + feed_forward + 4 * model.d_model)


def other_parameters(model: ModelConfig, train: TrainConfig, cutoffs: list[int], vocab_size: int) -> int:
    """Parameters of embedding, softmax and positions."""
    d_embed, width = model.d_embed or model.d_model, model.n_head * model.d_head
    edges = [0, *(cutoffs if model.adaptive else []), vocab_size]
    words = [end - begin for begin, end in pairwise(edges)]
    widths = [d_embed // model.div_val**i for i in range(len(words))]
    tails = len(words) - 1
    table = sum(n * w for n, w in zip(words, widths, strict=True))
    projected = model.div_val > 1 or d_embed != model.d_model
    own = [not model.tie_projs[min(i, len(model.tie_projs) - 1)] for i in range(len(words))]
    shared_table = widths[:1] if model.div_val == 1 else widths
    embedding = table + (model.d_model * sum(shared_table) if projected else 0)
    softmax = vocab_size + tails * (d_embed + 1) + (0 if model.tie_weight else table)
    if projected:
        softmax += model.d_model * sum(w for w, mine in zip(widths, own, strict=True) if mine)
    return embedding + softmax + position_parameters(model, longest_context(vars(train)), width)


def position_parameters(model: ModelConfig, longest: int, width: int) -> int:
    """`longest`: rows of the learned tables."""
    match model.positions:
        case Positions.relative:  # u and w
            return 2 * width * (model.n_layer if model.untie_r else 1)
        case Positions.shaw:  # keys and biases per distance, u
            return model.n_layer * (longest * (width + model.n_head) + width)
        case Positions.absolute_per_layer:
            return model.n_layer * longest * model.d_model
        case _:
            return 0


# --------------------------------------------------------------------------- memory

TAIL_SHARE = 0.15  # at most, of all tokens, in one tail cluster of an adaptive softmax
LOGITS_AT_ONCE = 2**25  # adaptive.py's, which would import torch


def memory_terms(
    config: RunConfig, vocab_size: int, parameters: int, micro: int, local: int, world_size: int
) -> dict[str, float]:
    """Bytes on one device at the end of a forward pass, by what they are for.

    An estimate; attention=auto and sdpa count as eager.

    With b the micro batch, T = ext_len + tgt_len, K = mem_len + T, D, W = n_head * d_head, F = d_inner, N heads,
    a the bytes of an activation (2 in half precision, with the parameters' 4), and one byte for each of a mask's:

        weights      4 P, and 2 P of them cast where arithmetic is half
        gradients    4 P, twice with several processes (the buckets that are reduced); with accumulation twice for
                     all but the layers, because the softmax's are there before the backward pass
        optimizer    8 P (LAMB, Adam) or 4 P (Adagrad, SGD with momentum)
        activations  b L [ a (2 K W + T (3 W + 3 D)) + 8 T D         inputs of products; of the LayerNorms
                           + a mem_len D, where it is half           memories, cast
                           + N T K (a + dropatt (a + 1))             probabilities; triton: N T (K a + 4)
                           + T F (a + dropout (a + 1)) + 2 T D ]     feed-forward; masks
                     with `recompute`: b [L 4 T D + the insides of one layer, as above]
        logits       LOGITS_AT_ONCE, or b T (head + 1), in float32, and their probabilities; with a sampled softmax
                     b T sampled_softmax three times: as they come, corrected, without hits
        mems         (local batch) L max(mem_len, T) D 4: a view of the segment where that is long enough; with
                     swap_mem none on a GPU
    """
    model, train, arithmetic = config.model, config.train, config.precision.name
    full = 8 if arithmetic is Arithmetic.fp64 else 4
    half = arithmetic in (Arithmetic.bf16, Arithmetic.fp16)
    a, on_cpu = 2 if half else full, config.hardware.gpus == 0
    K = longest_context(vars(train))
    T, D, F, N, L = K - train.mem_len, model.d_model, model.d_inner, model.n_head, model.n_layer
    W = model.n_head * model.d_head
    fused = config.attention is AttentionBackend.triton
    dropped, attention_dropped = (a + 1) * (model.dropout > 0), (a + 1) * (model.dropatt > 0)
    states = {OptimizerName.lamb: 2, OptimizerName.adam: 2, OptimizerName.adagrad: 1}
    per_layer = (
        a * (2 * K * W + T * (3 * W + 3 * D))
        + 2 * full * T * D
        + half * a * train.mem_len * D
        + N * T * (K * a + 4 if fused else K * (a + attention_dropped))
        + T * F * (a + dropped)
        + 2 * T * D * (model.dropout > 0)
    )
    edges = [0, *(config.data.cutoffs if model.adaptive else []), vocab_size]
    head, tails = edges[1] + len(edges) - 2, [end - begin for begin, end in pairwise(edges[1:])]
    tokens, limit = micro * train.tgt_len, LOGITS_AT_ONCE
    clusters = [(tokens, head), *((TAIL_SHARE * tokens, words) for words in tails)]
    logits = 2 * max(min(n * words, max(limit, words)) for n, words in clusters)
    if train.sampled_softmax:
        logits = 3 * tokens * train.sampled_softmax
    twice = parameters if world_size > 1 else 0
    twice += parameters - layer_parameters(model) if local > micro else 0
    layers = L * full * T * D + per_layer if config.recompute else L * per_layer
    return {
        "weights": parameters * (full + (2 if half else 0)),
        "gradients": (parameters + twice) * full,
        "optimizer": parameters * full * states.get(config.optimizer.name, bool(config.optimizer.momentum)),
        "activations": micro * layers,
        "logits": full * logits,
        "mems": local * L * max(train.mem_len, T) * D * full if train.mem_len and (on_cpu or not train.swap_mem) else 0,
    }
