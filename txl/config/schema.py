"""The whole configurations: what `train.py`, `evaluate.py` and `benchmark.py` need, every option as a typed field.

Each section has a file of its own. A field has no default here if `conf/` gives it a value, so that every value has
one home. The rules between values are in rules.py, and compose.py converts Hydra's configuration to these types.
Nothing here imports torch or Hydra, because a mistake must be answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from txl.config.adaptation import Adaptation
from txl.config.bounds import above_zero, zero_or_more
from txl.config.data import DataConfig
from txl.config.machine import ClusterConfig, HardwareConfig
from txl.config.model import AttentionBackend, ModelConfig
from txl.config.optimizer import OptimizerConfig
from txl.config.output_files import output_file
from txl.config.precision import Arithmetic, PrecisionConfig
from txl.config.sampling import MOST_SEED, Sampling
from txl.config.scheduler import SchedulerConfig
from txl.config.tracking import TrackingConfig
from txl.config.training import (
    MOST_SEQUENCES,
    MOST_TOKENS,
    CheckpointConfig,
    EvaluationConfig,
    TrainConfig,
    ValidConfig,
)

MOST_NODES = 100_000
MOST_GPUS = 1024  # per node


class Recipe(Enum):
    """The choices of `recipe=`: how a model is trained."""

    auto = "auto"  # as published: with the values for several nodes if `nodes` is above 1
    single_node = "single_node"  # as published for one node
    multi_node = "multi_node"  # as published for several nodes
    modern = "modern"  # conf/recipe/modern.yaml; the published values for what it does not set, as `auto`


class Split(Enum):
    """The parts of a data set."""

    train = "train"
    valid = "valid"
    test = "test"
    all = "all"  # valid, then test


class Task(Enum):
    """What `evaluate.py` does with a model."""

    evaluate = "evaluate"
    generate = "generate"
    score = "score"  # the lines of a file


class Runtime(Enum):
    """How a trained model is run."""

    auto = "auto"  # cached if it computes the same as eager, else eager
    eager = "eager"  # the code of training
    cached = "cached"  # remembers keys and values instead of hidden states
    graphs = "graphs"  # cached, as CUDA graphs
    compile = "compile"  # eager, through torch.compile
    torchscript = "torchscript"  # cached, traced for fixed lengths
    export = "export"  # cached, compiled ahead of time from torch.export


class Then(Enum):
    """What follows a training in the same job."""

    nothing = "nothing"
    evaluate = "evaluate"  # the evaluation that was published with the recipe


class Suite(Enum):
    """What `benchmark.py` measures."""

    inference = "inference"
    train = "train"
    encoding = "encoding"  # words of a text to ids


@dataclass
class RunConfig:
    """Everything that `train.py` needs."""

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
    recipe: Recipe = MISSING  # how the model is trained
    nodes: int = above_zero(most=MOST_NODES)  # machines that train together
    gpus: int | None = above_zero(None, most=MOST_GPUS)  # processes per node; null: hardware.gpus, or 1 on a CPU
    seed: int = zero_or_more(most=MOST_SEED)  # of initial weights, dropout, and the order of the data
    name: str = MISSING  # runs/<name>/<config hash>-s<seed>
    runs: str = MISSING  # folder of all runs
    run_dir: str | None = None  # null: the folder that the three options above name
    resume: str | None = None  # auto, or a checkpoint folder
    init_from: str | None = None  # run folder or checkpoint whose weights the run begins with
    sample_tokens: int = zero_or_more()  # length of the text that is generated after training; 0: none
    attention: AttentionBackend = MISSING  # what computes it; the results differ by rounding only
    compile: bool | str = MISSING  # layers through torch.compile; auto: on a GPU; graphs: as CUDA graphs
    recompute: bool = MISSING  # compute activations again in the backward pass: less memory, a third more work
    deterministic: bool = MISSING  # deterministic kernels, also where they cost speed
    then: Then = MISSING  # what follows the training in the same job
    preflight: bool = MISSING  # start the ranks and check them, train nothing
    preflight_torch: bool = MISSING  # check devices and collectives too; false: only what needs no torch
    debug: bool = MISSING  # train without a run folder, checkpoints or logs
    dry_run: bool = MISSING  # print the plan, start nothing
    # dry_run=true: write the plan to this file; -: to standard output, and nothing else
    json: str | None = output_file(may_be_stdout=True)

    @property
    def curve_steps(self) -> int:
        """The step at which the learning rate's curve ends."""
        return self.scheduler.max_step or self.train.max_step


@dataclass
class EvaluateConfig(Sampling, Adaptation):
    """Everything that `evaluate.py` needs.

    Lengths and batch_size that are null are those of the evaluation that was published with the checkpoint's recipe
    (`evaluation` in the run's configuration).
    """

    task: Task = MISSING  # what is done with the model
    checkpoint: str = MISSING  # a run folder, or one of its checkpoints
    config_file: str | None = None  # configuration of a run (YAML or JSON), if the checkpoint is weights alone
    split: Split = MISSING  # the part of the data set that is read
    runtime: Runtime = MISSING  # how the model is run
    program: str | None = output_file(may_be_read=True)  # torchscript, export: load it from this file, or write it
    trust_program: bool = False  # load a program that somebody else wrote, too: this runs code from the file
    tgt_len: int | None = above_zero(None, most=MOST_TOKENS)  # tokens of a segment
    mem_len: int | None = zero_or_more(None, most=MOST_TOKENS)  # tokens of memory
    ext_len: int | None = zero_or_more(None, most=MOST_TOKENS)  # tokens before each segment that are read again
    clamp_len: int | None = None  # larger distances count as this one; -1: no clamping
    same_length: bool | None = None  # every token attends to exactly mem_len tokens before it
    batch_size: int | None = above_zero(None, most=MOST_SEQUENCES)  # sequences side by side
    max_steps: int | None = above_zero(None)  # segments; null: the whole split
    repeat: int = above_zero()  # number of times that the split is read
    data_path: str | None = None  # another folder of the same data set
    precision: PrecisionConfig = MISSING
    hardware: HardwareConfig = MISSING
    cluster: ClusterConfig = MISSING
    nodes: int = above_zero(most=MOST_NODES)  # machines that evaluate together
    gpus: int | None = above_zero(None, most=MOST_GPUS)  # processes per node; null: hardware.gpus, or 1 on a CPU
    name: str = MISSING  # of a SLURM job
    run_dir: str | None = None  # folder of a SLURM job; null: evaluations/<hash> in the checkpoint's run folder
    log_interval: int | None = above_zero(None)  # segments; null: print only the result
    latency: bool = MISSING  # measure the time of every segment, its loss included
    percentiles: list[float] = MISSING  # of the latencies
    target_perplexity: float | None = above_zero(None)  # or bits per character; exit code 3 if it is missed
    target_throughput: float | None = above_zero(None)  # tokens/s; exit code 3 if it is missed
    json: str | None = output_file()  # write the result to this file
    npz: str | None = output_file()  # write every segment's latency and tokens/s to this file
    log: str | None = output_file()  # append what is printed to this file
    dllogger: str | None = output_file()  # write the result in the original's format, lines of `DLLL {json}`
    text: str | None = None  # evaluate this text; -: standard input
    token_losses: bool = MISSING  # with text: print the loss of every token
    file: str | None = None  # task=score: file with one text per line, or id<TAB>text; -: standard input
    scores: str | None = output_file()  # task=score: write a row per line to this file (TSV, or .jsonl); null: stdout
    context: str = MISSING  # task=score: what is before each text: none, previous (all lines before it), or a file
    prompt: str | None = None  # task=generate: the beginning of the text; -: standard input
    prompts: str | None = None  # task=generate: file with one prompt per line


@dataclass
class BenchmarkSection:
    """What `benchmark.py` varies and how long it measures."""

    batch_sizes: list[int] = MISSING  # suite=inference: sequences side by side
    runtimes: list[Runtime] = MISSING
    precisions: list[Arithmetic] = MISSING
    segments: int = above_zero()  # measured after the memory is full and the first segments are over
    micro_batch_sizes: list[int] = MISSING  # suite=train
    processes: list[int] | None = None  # suite=train: numbers of processes on this machine; null: gpus= and hardware=
    steps: int = above_zero()  # suite=train: measured after the warm-up
    warmup_steps: int = zero_or_more()  # suite=train: not measured
    megabytes: int = above_zero()  # suite=encoding: size of the text that is generated and encoded
    profile: str | None = output_file()  # suite=train: file for a trace of torch's profiler (of the last row)
    checkpoint: str | None = None  # weights; null: random ones of the model's shape
    json: str | None = output_file(makes_folder=True)  # write the table to this file


@dataclass
class BenchmarkConfig(RunConfig):
    """Everything that `benchmark.py` needs: a run's configuration, and what to measure."""

    suite: Suite = MISSING  # what is measured
    benchmark: BenchmarkSection = MISSING


def is_multi_node(recipe: Recipe, nodes: int) -> bool:
    """Whether the published values for several nodes hold."""
    return recipe is Recipe.multi_node or (recipe is not Recipe.single_node and nodes > 1)


def recipe_name(recipe: Recipe, nodes: int) -> str:
    """The recipe that holds for this number of nodes: single_node, multi_node or modern."""
    if recipe is Recipe.modern:
        return recipe.name
    return (Recipe.multi_node if is_multi_node(recipe, nodes) else Recipe.single_node).name
