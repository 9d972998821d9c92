"""What `dry_run=true` shows besides the plan: everything that decides a run's numbers, its time, and its cost."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from txl.config.compose import to_dict
from txl.config.data import DataConfig, SourceName
from txl.config.geometry import Geometry, train_geometry, valid_geometry
from txl.config.scheduler import SchedulerConfig, SchedulerName
from txl.config.schema import RunConfig, Then
from txl.errors import ConfigError
from txl.plan.expected_speed import ExpectedSpeed
from txl.plan.run_plan import Plan
from txl.system.hardware import visible_gpus

WIDTH = 80  # columns that a row fills before it is continued on the next line
INDENT = 13  # columns before the values of the rows


@dataclass(frozen=True)
class EncodedData:
    """What is known of a data set without encoding it."""

    vocab_size: int | None = None
    tokens: dict[str, int] = field(default_factory=dict)  # by split; empty: not encoded yet
    unknown: dict[str, float] = field(default_factory=dict)  # share of unknown tokens by split
    not_ready: str = ""  # what a start would say: files are missing, for instance


@dataclass(frozen=True)
class DryRun:
    """A planned run, ready to be shown."""

    config: RunConfig
    plan: Plan
    data: EncodedData
    speed: ExpectedSpeed | None
    # Key -> (value, value of the recipe) where the command line replaces the recipe's.
    overridden: Mapping[str, tuple[Any, Any]]
    is_published: bool  # the recipe is one that the original published

    @property
    def seconds(self) -> float | None:
        """The time of training, without validations; None if no speed is known."""
        return None if self.speed is None else self.plan.total_tokens / self.speed.tokens_per_second

    @property
    def gpu_hours(self) -> float | None:
        """All GPUs together; None on CPUs, and if the time is not known."""
        hardware = self.config.hardware
        if self.seconds is None or not (visible_gpus() if hardware.gpus is None else hardware.gpus):
            return None
        return self.seconds * self.plan.world_size / 3600

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        config, speed = self.config, self.speed
        sections = ("optimizer", "scheduler", "precision", "train", "valid", "evaluation", "model", "hardware")
        return {
            "plan": self.plan.to_dict(),
            **{section: to_dict(getattr(config, section)) for section in sections},
            "valid_geometry": vars(valid_geometry(config)),
            "data": {"name": config.data.name, "vocab": config.data.vocab.name} | vars(self.data),
            "tokens_per_second": speed and speed.tokens_per_second,
            "speed_source": speed and speed.source,
            "seconds": self.seconds,
            "gpu_hours": self.gpu_hours,
            "overridden": {key: {"value": mine, "recipe": theirs} for key, (mine, theirs) in self.overridden.items()},
        }

    def __str__(self) -> str:
        return f"{self.plan}\n" + "\n".join(show_row(name, value) for name, value in self._rows().items() if value)

    def _rows(self) -> dict[str, str]:
        config, block = self.config, self.config.evaluation
        published = Geometry(block.tgt_len, block.mem_len, block.ext_len, block.clamp_len, block.same_length)
        when = "after training" if config.then is Then.evaluate else "by txl evaluate"
        valid = f"{valid_geometry(config)} batch {config.valid.batch_size}, every {config.valid.interval:,} steps"
        return {
            "optimizer": describe_optimizer(config),
            "schedule": describe_schedule(config),
            "precision": config.precision.name.name,
            "dropout": f"{config.model.dropout:g}, of attention {config.model.dropatt:g}",
            "lengths": describe_lengths(config),
            "validation": valid if config.valid.enabled else "none",
            "evaluation": f"{published} batch {block.batch_size}, {when}",
            "data": describe_data(config.data, self.data, self.plan.total_tokens),
            "not ready": self.data.not_ready,
            "time": self._describe_time(),
            "overridden": self._describe_overridden(),
        }

    def _describe_time(self) -> str:
        if self.speed is None or self.seconds is None:
            return "not known: nothing was published or measured for it; txl benchmark suite=train measures the speed"
        hours = "" if self.gpu_hours is None else f", {self.gpu_hours:,.1f} GPU-hours"
        speed = f"{self.speed.tokens_per_second:,.0f} tokens/s"
        return f"about {show_duration_long(self.seconds)}{hours}, without validation: {speed}, {self.speed.source}"

    def _describe_overridden(self) -> str:
        word = "published" if self.is_published else "the recipe's"
        return "; ".join(f"{key} {mine}, {word} {theirs}" for key, (mine, theirs) in self.overridden.items())


def describe_lengths(config: RunConfig) -> str:
    """The lengths of training: `tgt_len 64 mem_len 64 clamp_len -1 same_length false, memory from step 1,000 on`."""
    begins = config.train.mem_from_step if config.train.mem_len else 0
    memory = f", memory from step {begins:,} on" if begins else ""
    return f"{train_geometry(config)}{memory}{', drawn (varlen)' if config.train.varlen else ''}"


def describe_optimizer(config: RunConfig) -> str:
    """Name, learning rate and options of the optimizer, and clipping: `lamb lr 0.01 betas [0.9, 0.999], clip 0.25`."""
    values = to_dict(config.optimizer)
    options = ["lr", *config.optimizer.name.facts.options]
    options += [name for name in ("weight_decay", "lr_scale") if values[name]]
    shown = " ".join(f"{name} {values[name]}" for name in options)
    return f"{values['name']} {shown}, " + (f"clip {config.train.clip:g}" if config.train.clip else "no clipping")


def describe_schedule(config: RunConfig) -> str:
    """The learning rate over time: `cosine from 0.01 to 0.001 at step 40,000, warm-up 1,000 steps`."""
    schedule: SchedulerConfig = config.scheduler
    text, peak = schedule.name.value, f"{config.optimizer.lr:g}"
    if schedule.name.has_end:
        text += f" from {peak} to {schedule.eta_min:g} at step {config.curve_steps:,}"
    elif schedule.name is SchedulerName.dev_perf:
        text += f" from {peak}, times {schedule.decay_rate:g} after {schedule.patience} validations without improvement"
        text += f", not below {schedule.lr_min:g}" if schedule.lr_min else ""
    else:
        text += f" from {peak}"
    return text + (f", warm-up {schedule.warmup_step:,} steps" if schedule.warmup_step else ", no warm-up")


def describe_data(options: DataConfig, data: EncodedData, trained: int) -> str:
    """Vocabulary and tokens of a data set, and how many epochs the training is: as far as that is known."""
    size = "vocabulary not built yet" if data.vocab_size is None else f"vocabulary {data.vocab_size:,}"
    text = f"{options.name} as {options.vocab.name}, {size}"
    if not data.tokens:
        return text + "; not encoded yet: its number of tokens is not known"
    text += "; tokens: " + ", ".join(f"{split} {n:,}" for split, n in data.tokens.items())
    return text + f"; {trained / max(1, data.tokens['train']):.1f} epochs"


def show_duration_long(seconds: float) -> str:
    """Days, hours and minutes, or seconds of a short time: `1 h 13 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, rest = divmod(minutes, 1440)
    parts = ((days, "d"), (rest // 60, "h"), (rest % 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 min"


def show_row(name: str, value: str) -> str:
    """A row of the dry run; a long value is continued on the next lines, below its beginning."""
    import textwrap

    lines = textwrap.wrap(value, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    return f"{name:<{INDENT - 1}} " + ("\n" + " " * INDENT).join(lines)


def known_data(options: DataConfig, vocab_size: int | None, is_read: bool = True) -> EncodedData:
    """What an earlier encoding of this data set tells; without one the expected size of the vocabulary.

    Args:
        options: The data set.
        vocab_size: Of the plan; None: not known.
        is_read: The files will be read, so that it is said if they are missing; a benchmark reads none.
    """
    fault = find_data_fault(options) if is_read else ""
    if fault or not os.path.isdir(os.path.expanduser(options.cache)):
        return EncodedData(vocab_size, not_ready=fault)
    from txl.data.corpus import encoded_meta, unknown_shares

    meta = encoded_meta(options)
    if meta is None:
        return EncodedData(vocab_size)
    tokens = {split: int(entry["tokens"]) for split, entry in meta["splits"].items()}
    return EncodedData(int(meta["vocab_size"]), tokens, unknown_shares(meta))


def find_data_fault(options: DataConfig) -> str:
    """Why a start would refuse the files of a data set; empty: they are there. Writes nothing, encodes nothing."""
    from txl.data.find_files import find_text_files, find_vocabulary_files

    try:
        if options.source is not SourceName.text:
            from txl.data.token_source import open_source  # imports NumPy

            open_source(options)
        elif options.max_bytes is None:
            find_text_files(options)
            find_vocabulary_files(options)
    except ConfigError as error:
        return str(error)
    return ""
