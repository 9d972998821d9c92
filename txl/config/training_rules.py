"""The rules of training: lengths, batch, validation, optimizer, learning rate."""

import re

from omegaconf import MISSING

from txl.config.model_rules import check_clamp
from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.config.precision import Arithmetic
from txl.config.scheduler import SchedulerName
from txl.config.schema import RunConfig, Then
from txl.config.training import VARLEN_SHORTEST
from txl.errors import any_of, refuse_unless, refuse_unused, shown

MODEL_PARTS = ["embedding", "positions", "layers", "softmax"]  # attributes of TransformerXL that have parameters


def check_training(config: RunConfig) -> None:
    """Raises ConfigError for options of a training that do not go together."""
    _check_lengths(config)
    _check_batch(config)
    _check_without_validation(config)
    _check_divergence(config)
    _check_optimizer(config)
    _check_lr_scale(config)
    _check_sampled_softmax(config)
    _check_multi_token(config)
    _check_end_of_schedule(config)
    _check_plateau(config)


def _check_lengths(config: RunConfig) -> None:
    train, valid, evaluation = config.train, config.valid, config.evaluation
    for name, section in (("train", train), ("evaluation", evaluation)):
        check_clamp(f"{name}.clamp_len", section.clamp_len, config.model)
        rule = f"needs a memory; set {name}.mem_len above 0, or leave it out"
        refuse_unless(section.mem_len > 0 or not section.same_length, f"{name}.same_length", True, rule)
    other = "mem_len" if train.mem_len else "ext_len"
    most = train.tgt_len + getattr(train, other)
    rule = f"must be at most train.tgt_len + train.{other} = {most}: validation sees no further than training"
    refuse_unless(valid.tgt_len <= most, "valid.tgt_len", valid.tgt_len, rule)
    rule = f"draws lengths of {VARLEN_SHORTEST} and more around train.tgt_len={train.tgt_len}; raise it to that"
    refuse_unless(not train.varlen or train.tgt_len >= VARLEN_SHORTEST, "train.varlen", train.varlen, rule)


def _check_batch(config: RunConfig) -> None:
    train = config.train
    steps, micro, first = train.grad_accum_steps, train.micro_batch_size, train.first_rank_batch_size
    caps = [cap for by_precision in (train.micro_batch_cap or {}).values() for cap in by_precision.values()]
    refuse_unless(min(caps, default=1) > 0, "train.micro_batch_cap", train.micro_batch_cap, "must all be above 0")
    rule = f"excludes train.micro_batch_size={micro}, from which it follows: give one of them"
    refuse_unless(steps is None or micro is None, "train.grad_accum_steps", steps, rule)
    if first is not None:
        rule = "excludes train.local_batch_size, which is the same for every process; use train.batch_size"
        refuse_unless(train.local_batch_size is None, "train.first_rank_batch_size", first, rule)
        rule = f"must be below train.batch_size={train.batch_size}, which all processes share; lower it"
        refuse_unless(first < train.batch_size, "train.first_rank_batch_size", first, rule)


def _check_divergence(config: RunConfig) -> None:
    skipped = config.train.non_finite_steps
    rule = "is for other precisions: the loss scaler of fp16 skips and counts such steps itself; leave it out"
    refuse_unless(skipped == 1 or config.precision.name is not Arithmetic.fp16, "train.non_finite_steps", skipped, rule)


def _check_without_validation(config: RunConfig) -> None:
    if config.valid.enabled:
        return
    plateau, target = config.scheduler.name is SchedulerName.dev_perf, config.train.target_perplexity
    rule = "leaves scheduler=dev_perf nothing to follow; use another scheduler, or valid.enabled=true"
    refuse_unless(not plateau, "valid.enabled", False, rule)
    rule = "excludes then=evaluate: leave one of them out"
    refuse_unless(config.then is Then.nothing, "valid.enabled", False, rule)
    rule = f"excludes train.target_perplexity={target:g}: leave one of them out" if target else ""
    refuse_unless(target is None, "valid.enabled", False, rule)


def _check_optimizer(config: RunConfig) -> None:
    optimizer, name = config.optimizer, config.optimizer.name.name
    needed = optimizer.name.facts.options
    if "betas" in needed:
        valid = len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas)
        rule = "must be two numbers, each at least 0 and below 1, such as [0.9,0.999]"
        refuse_unless(valid, "optimizer.betas", optimizer.betas, rule)
    for option, absent in vars(OptimizerConfig()).items():
        if absent == MISSING or option == "lr_scale":  # every optimizer has it
            continue
        value, key = getattr(optimizer, option), f"optimizer.{option}"
        if option in needed:
            refuse_unless(value != absent, key, value, f"is needed by optimizer={name}; give it")
        else:
            refuse_unused(False, key, value, absent, f"optimizer={name}")


def _check_lr_scale(config: RunConfig) -> None:
    for entry in config.optimizer.lr_scale:
        valid = re.fullmatch(r"[^=\s]+=(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", entry)
        rule = "must be a pattern of names and a factor of 0 or more: 'optimizer.lr_scale=[\"embedding.*=0.5\"]'"
        refuse_unless(bool(valid), "optimizer.lr_scale", entry, rule)
    for pattern in config.optimizer.lr_scales():
        prefix = re.split(r"[*?[]", pattern)[0]
        known = any(f"{part}.".startswith(prefix) or prefix.startswith(f"{part}.") for part in MODEL_PARTS)
        rule = f"matches no parameter: their names begin with {any_of(MODEL_PARTS)}, such as embedding.*"
        refuse_unless(known, "optimizer.lr_scale", pattern, rule)


def _check_sampled_softmax(config: RunConfig) -> None:
    key, count, decay = "train.sampled_softmax", config.train.sampled_softmax, config.optimizer.weight_decay
    if count is None:
        return
    whole = not config.model.adaptive or not config.data.cutoffs
    rule = f"needs one softmax, and data.cutoffs={shown(config.data.cutoffs)} divide it; use model.adaptive=false"
    refuse_unless(whole, key, count, rule)
    optimizer, reason = config.optimizer.name, config.optimizer.name.facts.sparse_refusal
    able = [name.name for name in OptimizerName if name.facts.sparse_refusal is None]
    rule = f"steps drawn rows only, but optimizer={optimizer.name} {reason}; use optimizer={any_of(able)}"
    refuse_unless(reason is None, key, count, rule)
    rule = f"excludes optimizer.weight_decay={decay:g}: rows would decay only when they are drawn; use 0"
    refuse_unless(decay == 0, key, count, rule)


def _check_multi_token(config: RunConfig) -> None:
    train = config.train
    weight, steps, drawn = train.multi_token_weight, train.multi_token_steps, train.sampled_softmax
    rule = "needs the number of steps in which it falls to 0; set train.multi_token_steps above 0"
    refuse_unless(not weight or steps > 0, "train.multi_token_weight", weight, rule)
    rule = f"needs the whole softmax, and train.sampled_softmax={drawn} draws words of it; leave one of them out"
    refuse_unless(not weight or drawn is None, "train.multi_token_weight", weight, rule)


def _check_end_of_schedule(config: RunConfig) -> None:
    scheduler, lr = config.scheduler, config.optimizer.lr
    if not scheduler.name.has_end:
        return
    owner = "scheduler" if scheduler.max_step else "train"
    rule = (
        f"must be below {owner}.max_step={config.curve_steps}, where {scheduler.name.name} ends; lower it, or set "
        "scheduler.max_step to the length of the whole curve"
    )
    refuse_unless(scheduler.warmup_step < config.curve_steps, "scheduler.warmup_step", scheduler.warmup_step, rule)
    rule = f"must be at most optimizer.lr={lr:g}, from where {scheduler.name.name} falls; lower it"
    refuse_unless(scheduler.eta_min <= lr, "scheduler.eta_min", scheduler.eta_min, rule)


def _check_plateau(config: RunConfig) -> None:
    scheduler = config.scheduler
    plateau = scheduler.name is SchedulerName.dev_perf
    for option in ("decay_rate", "patience", "lr_min"):
        value, key = getattr(scheduler, option), f"scheduler.{option}"
        refuse_unless(plateau or value is None, key, value, f"has no meaning for scheduler={scheduler.name.name}")
        refuse_unless(not plateau or value is not None, key, value, "is needed by scheduler=dev_perf")
    if plateau:
        rate, interval = scheduler.decay_rate, config.valid.interval
        refuse_unless(rate is not None and 0 < rate < 1, "scheduler.decay_rate", rate, "must be in (0,1)")
        rule = f"must be below train.max_step={config.train.max_step}: scheduler=dev_perf needs validations; lower it"
        refuse_unless(interval < config.train.max_step, "valid.interval", interval, rule)
