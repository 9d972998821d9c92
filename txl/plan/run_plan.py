"""The plan of a run: how the batch is split, how large the model is, how much memory it takes. Imports no torch.

`dry_run=true` prints `make_plan(config)`, and `Plan.to_dict()` is written into the run folder.
"""

import functools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from txl.config.choose_vocab import choice_reason
from txl.config.config_hash import config_hash
from txl.config.data import MOST_UNKNOWN, DataConfig, describe_unknown
from txl.config.schema import BenchmarkConfig, RunConfig, recipe_name
from txl.errors import refuse_unless
from txl.plan.batch_split import processes, split_batch
from txl.plan.device_memory import device_memory_gb, fitting_micro_batch
from txl.plan.memory_estimate import memory_terms
from txl.plan.parameter_count import layer_parameters, other_parameters

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """What follows from a configuration on a machine."""

    run_dir: str
    debug: bool  # nothing is written into run_dir
    recipe: str  # single_node or multi_node, which were published, or modern
    nodes: int
    gpus_per_node: int  # on a CPU: processes per node
    gpu: str | None  # name of the GPU; None: not configured
    world_size: int
    local_batch_size: int  # sequences per process and step
    first_rank_batch_size: int  # the same of the first process
    micro_batch_size: int  # sequences per forward pass
    micro_batch_for_memory: bool  # it is the largest whose estimated memory fits, neither configured nor published
    grad_accum_steps: int
    tokens_per_step: int
    max_step: int
    total_tokens: int
    parameters: int | None  # None: the size of the vocabulary is not known yet
    layer_parameters: int
    memory_gb: float | None  # estimate, per process
    device_memory_gb: float | None
    vocab: str = ""  # the kind of the vocabulary, and why it was chosen if nobody named it
    vocab_size: int | None = None
    unknown: dict[str, float] | None = None  # share of the tokens of each split; None: not known, or no <unk>

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        size = f"{self.layer_parameters:,} parameters in layers, vocabulary not built yet"
        if self.parameters:
            size = f"{self.parameters:,} parameters, {self.layer_parameters:,} of them in layers"
        memory = "vocabulary not built yet" if self.memory_gb is None else f"about {self.memory_gb:.1f} GB per process"
        if self.memory_gb and self.device_memory_gb:
            memory += f", of {self.device_memory_gb:g} GB"
        batch = self.first_rank_batch_size + (self.world_size - 1) * self.local_batch_size
        share = f"{self.grad_accum_steps} accumulation step(s) x micro batch {self.micro_batch_size}"
        if self.micro_batch_for_memory:
            share += ", the largest that fits"
        if self.first_rank_batch_size != self.local_batch_size:
            share += f"; the first: {self.first_rank_batch_size} sequences"
        rows = {
            "run folder": "none: debug=true" if self.debug else self.run_dir,
            "processes": f"{self.world_size} = {self.nodes} node(s) x {self.gpus_per_node} {self.gpu or ''}".rstrip(),
            "recipe": self.recipe,
            "batch": f"{batch} sequences, {self.tokens_per_step:,} tokens per step",
            "per process": share,
            "training": f"{self.max_step:,} steps, {self.total_tokens:,} tokens",
            "model": size,
            "memory": memory,
            "vocabulary": self._vocabulary(),
            "unknown": self._unknown(),
        }
        return "\n".join(f"{name:<12} {value}" for name, value in rows.items() if value)

    def _vocabulary(self) -> str:
        size = f"{self.vocab_size:,} tokens" if self.vocab_size else "not built yet"
        return f"{self.vocab}, {size}"

    def _unknown(self) -> str:
        unknown = self.unknown or {}
        absurd = max(unknown.values(), default=0) > MOST_UNKNOWN
        return describe_unknown(unknown) + (" (try data.vocab=char)" if absurd else "")


def run_folder(config: RunConfig) -> str:
    """Returns the folder of a run: `run_dir`, or <runs>/<name>/<hash of the configuration>-s<seed>."""
    return config.run_dir or str(Path(config.runs) / config.name / f"{config_hash(config)}-s{config.seed}")


def make_plan(config: RunConfig, vocab_size: int | None = None, unknown: dict[str, float] | None = None) -> Plan:
    """Plans a run: processes, batch, sizes.

    Args:
        config: A checked configuration, whose train.batch_size is the global batch (`with_global_batch`).
        vocab_size: Number of tokens in the vocabulary; None: as far as it is known without encoding the text.
        unknown: Share of the tokens of each split that are unknown; None: as far as it is known likewise.

    Raises:
        ConfigError: Processes and batch do not fit, or the vocabulary is too small for a value.
    """
    assert config.train.local_batch_size is None, "with_global_batch comes first"
    train = config.train
    if vocab_size is None:
        vocab_size, unknown = known_vocab_size(config.data), known_unknown(config.data)
    reason = choice_reason(config.data.path, config.data.file)
    nodes, gpus = processes(config)
    world_size = nodes * gpus
    first, local, asked = split_batch(config, world_size)
    micro = asked
    layers = layer_parameters(config.model)
    parameters = memory = available = None
    if vocab_size:
        _check_vocab_size(config, vocab_size)
        parameters = layers + other_parameters(config.model, train, config.data.cutoffs, vocab_size)
        estimate = functools.partial(_memory_gb, config, vocab_size, parameters, max(first, local), world_size)
        available = device_memory_gb(config, gpus)
        if available is not None:
            micro = fitting_micro_batch(config, micro, estimate, available)
        memory = estimate(micro)
    tokens = train.batch_size * train.tgt_len
    return Plan(
        run_dir=run_folder(config),
        debug=config.debug,
        recipe=recipe_name(config.recipe, config.nodes),
        nodes=nodes,
        gpus_per_node=gpus,
        gpu=config.hardware.gpu,
        world_size=world_size,
        local_batch_size=local,
        first_rank_batch_size=first,
        micro_batch_size=micro,
        micro_batch_for_memory=micro < asked,
        grad_accum_steps=local // micro,
        tokens_per_step=tokens,
        max_step=train.max_step,
        total_tokens=tokens * train.max_step,
        parameters=parameters,
        layer_parameters=layers,
        memory_gb=memory,
        device_memory_gb=available,
        vocab=f"data.vocab={config.data.vocab.name}" + (" (chosen for this text)" if reason else ""),
        vocab_size=vocab_size,
        unknown=unknown or None,
    )


def plan_without_data(config: RunConfig) -> Plan:
    """The plan as far as it is known before any text is read: for dry runs, preflights and benchmarks."""
    return make_plan(config, config.data.vocab_size if isinstance(config, BenchmarkConfig) else None)


def _memory_gb(config: RunConfig, vocab_size: int, parameters: int, local: int, world_size: int, micro: int) -> float:
    terms = memory_terms(config, vocab_size, parameters, micro, local, world_size)
    return round(sum(terms.values()) / GB, 2)


def _check_vocab_size(config: RunConfig, vocab_size: int) -> None:
    """Values that the rules could not check, because the vocabulary was not known."""
    cutoffs, drawn = config.data.cutoffs, config.train.sampled_softmax or 0
    rule = f"must end below the vocabulary's size {vocab_size}; use fewer, or data.cutoffs=[]"
    refuse_unless(not config.model.adaptive or max(cutoffs, default=0) < vocab_size, "data.cutoffs", cutoffs, rule)
    rule = f"must be at most the vocabulary's size {vocab_size}; lower it, or leave it out"
    refuse_unless(drawn <= vocab_size, "train.sampled_softmax", drawn, rule)


def known_vocab_size(data: DataConfig) -> int | None:
    """Returns the size of the vocabulary if it is known without encoding the text, else None.

    It is the size of an earlier encoding, else the number of words in data.vocab_file, else data.vocab_size.
    """
    if data.vocab_file is None and not os.path.isdir(os.path.expanduser(data.cache)):
        return data.vocab_size
    from txl.data.corpus import encoded_vocab_size, vocab_size_from_files

    return encoded_vocab_size(data) or vocab_size_from_files(data) or data.vocab_size


def known_unknown(data: DataConfig) -> dict[str, float]:
    """Returns the share of unknown tokens of each split of a text that is encoded already; {}: it is not known."""
    if not os.path.isdir(os.path.expanduser(data.cache)):
        return {}
    from txl.data.corpus import encoded_meta, unknown_shares

    meta = encoded_meta(data)
    shares = {} if meta is None else unknown_shares(meta)
    return shares if any(shares.values()) else {}  # without <unk>, nothing is unknown
