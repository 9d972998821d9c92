"""What a run is: every option as a typed field. Each section of options has a file of its own.

Fields have no defaults here if `conf/` gives them a value: one home per value. The rules between values are in
rules.py; compose.py makes these types of Hydra's configuration. Nothing here imports torch or Hydra, so that a mistake
is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from txl.config.data import DataConfig
from txl.config.machine import ClusterConfig, HardwareConfig
from txl.config.model import AttentionBackend, ModelConfig
from txl.config.optimizer import OptimizerConfig
from txl.config.precision import Arithmetic, PrecisionConfig
from txl.config.scheduler import SchedulerConfig
from txl.config.tracking import TrackingConfig
from txl.config.training import CheckpointConfig, EvaluationConfig, TrainConfig, ValidConfig


class Recipe(Enum):
    auto = "auto"
    single_node = "single_node"
    multi_node = "multi_node"


class Split(Enum):
    train = "train"
    valid = "valid"
    test = "test"
    all = "all"  # valid, then test


class Task(Enum):
    evaluate = "evaluate"
    generate = "generate"


class Runtime(Enum):
    """How a model with fixed weights is run (inference.py)."""

    auto = "auto"  # cached where that is exact, else eager
    eager = "eager"  # the training's own code
    cached = "cached"  # keys and values are remembered, not hidden states
    graphs = "graphs"  # the same, as CUDA graphs
    compile = "compile"  # the eager code through torch.compile
    torchscript = "torchscript"  # the cached step, traced for fixed lengths
    export = "export"  # the cached step, compiled ahead of time from torch.export


class Then(Enum):
    nothing = "nothing"
    evaluate = "evaluate"  # the recipe's published evaluation block


class Suite(Enum):
    """What benchmark.py measures."""

    inference = "inference"
    train = "train"
    encoding = "encoding"  # words of a text to ids


@dataclass
class RunConfig:
    """Everything `train.py` needs."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    train: TrainConfig = MISSING
    valid: ValidConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    precision: PrecisionConfig = MISSING
    hardware: HardwareConfig = MISSING
    cluster: ClusterConfig = MISSING
    tracking: TrackingConfig = MISSING
    recipe: Recipe = MISSING
    nodes: int = MISSING
    gpus: int | None = None  # processes per node; null: hardware.gpus, one on a CPU
    seed: int = MISSING
    name: str = MISSING  # runs/<name>/<config hash>-s<seed>
    runs: str = MISSING  # folder of all runs
    run_dir: str | None = None  # null: derived from the three above
    resume: str | None = None  # auto, or a checkpoint folder
    init_from: str | None = None  # run folder or checkpoint whose weights the run begins with (fine_tuning.py)
    sample_tokens: int = MISSING  # length of the text written after training; 0: none
    attention: AttentionBackend = MISSING
    compile: bool | str = MISSING  # layers through torch.compile; auto: on a GPU
    recompute: bool = MISSING  # layers' activations in the backward pass: less memory, a third more work
    deterministic: bool = MISSING
    then: Then = MISSING  # what follows training in the same job
    preflight: bool = MISSING  # start the ranks and check them, train nothing
    preflight_torch: bool = MISSING  # with devices and collectives; false: only what needs no torch
    debug: bool = MISSING  # leave no trace: no run folder, no checkpoint, no log
    dry_run: bool = MISSING


@dataclass
class EvaluateConfig:
    """Everything `evaluate.py` needs; null: as the checkpoint's recipe was published (`evaluation` of its run)."""

    task: Task = MISSING
    checkpoint: str = MISSING  # run folder, or one of its checkpoints
    config_file: str | None = None  # for weights without one: a run's configuration, YAML or JSON
    split: Split = MISSING
    runtime: Runtime = MISSING
    program: str | None = None  # torchscript, export: file to load the program from, or to write it to
    tgt_len: int | None = None
    mem_len: int | None = None
    ext_len: int | None = None
    clamp_len: int | None = None
    same_length: bool | None = None
    batch_size: int | None = None
    max_steps: int | None = None  # segments; null: the whole split
    repeat: int = MISSING  # read the split so often
    data_path: str | None = None  # another folder of the same data set
    precision: PrecisionConfig = MISSING
    hardware: HardwareConfig = MISSING
    gpus: int | None = None  # processes; null: as many as hardware.gpus, one on a CPU
    log_interval: int | None = None  # segments; null: no lines before the result
    latency: bool = MISSING  # time every segment on its own, its losses included
    percentiles: list[float] = MISSING  # of the latencies
    target_perplexity: float | None = None  # (or bits per character) missed: exit code 3
    target_throughput: float | None = None  # tokens/s; missed: exit code 3
    json: str | None = None  # file for the result
    npz: str | None = None  # file for the latency and the tokens/s of every segment
    log: str | None = None  # file that what is said is appended to
    dllogger: str | None = None  # file for the result in the original's format, lines of `DLLL {json}`
    text: str | None = None  # evaluate this text, typed by hand; -: standard input
    token_losses: bool = MISSING  # of `text`: a table of every token's loss
    prompt: str | None = None  # generate: the text to go on from; -: standard input
    prompts: str | None = None  # generate: a file with one prompt per line
    max_tokens: int = MISSING
    temperature: float = MISSING
    top_k: int | None = None  # choose among the k likeliest tokens only
    top_p: float | None = None  # choose among the likeliest tokens that together have this probability
    seed: int = MISSING


@dataclass
class BenchmarkSection:
    batch_sizes: list[int] = MISSING
    runtimes: list[Runtime] = MISSING
    precisions: list[Arithmetic] = MISSING
    segments: int = MISSING  # measured, after the memory is full and the first few are over
    micro_batch_sizes: list[int] = MISSING  # suite=train
    processes: list[int] | None = None  # suite=train: on this machine; null: as gpus= and hardware= say
    steps: int = MISSING  # suite=train: measured, after the warm-up
    warmup_steps: int = MISSING
    megabytes: int = MISSING  # suite=encoding: of the text that is made and encoded
    profile: str | None = None  # suite=train: file for a trace of torch's profiler (of the last row)
    checkpoint: str | None = None  # these weights; null: random ones of the model's shape
    json: str | None = None  # file for the table


@dataclass
class BenchmarkConfig(RunConfig):
    """Everything `benchmark.py` needs: a run's configuration, and what to measure of it."""

    suite: Suite = MISSING
    benchmark: BenchmarkSection = MISSING


def is_multi_node(recipe: Recipe, nodes: int) -> bool:
    """Whether the published multi-node values hold."""
    return recipe is Recipe.multi_node or (recipe is Recipe.auto and nodes > 1)
