"""What a run is: every option as a typed field.

Fields have no defaults here when `conf/` gives them a value: one home per value. The rules between values are in
rules.py; composition.py comes here from Hydra's configuration. Nothing here imports torch or Hydra, so that a mistake
answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from txl.config.choices import (
    Arithmetic,
    AttentionBackend,
    Init,
    Metric,
    OptimizerName,
    Positions,
    Recipe,
    Runtime,
    SchedulerName,
    Split,
    Suite,
    Task,
    Then,
    VocabKind,
    WandbMode,
)

# --------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Geometry:
    """The lengths under which a loss is computed. No perplexity is printed without them."""

    tgt_len: int
    mem_len: int
    ext_len: int = 0
    clamp_len: int = -1
    same_length: bool = False

    def __str__(self) -> str:
        text = f"tgt_len {self.tgt_len} mem_len {self.mem_len}"
        if self.ext_len:
            text += f" ext_len {self.ext_len}"
        return f"{text} clamp_len {self.clamp_len} same_length {str(self.same_length).lower()}"


@dataclass
class ModelConfig:
    """Architecture and initialisation; the names are the paper's."""

    name: str = MISSING
    n_layer: int = MISSING
    n_head: int = MISSING
    d_model: int = MISSING
    d_head: int = MISSING
    d_inner: int = MISSING
    d_embed: int | None = None  # embedding width; null: d_model
    dropout: float = MISSING
    dropatt: float = MISSING
    positions: Positions = MISSING
    pre_lnorm: bool = MISSING
    untie_r: bool = MISSING  # one pair of attention biases (u, w) per layer
    adaptive: bool = MISSING  # adaptive input and softmax over data.cutoffs
    div_val: int = MISSING  # each further cluster is this much narrower
    tie_weight: bool = MISSING  # softmax weights are the embedding's
    tie_projs: list[bool] = MISSING  # per cluster; the last entry holds for all further ones
    init: Init = MISSING
    init_std: float = MISSING
    init_range: float = MISSING
    emb_init: Init = MISSING
    emb_init_range: float = MISSING
    proj_init_std: float = MISSING


@dataclass
class DataConfig:
    """One data set: files, tokenization, vocabulary."""

    name: str = MISSING
    path: str | None = MISSING  # folder that train/valid/test are relative to
    train: str | None = None  # a file, or a pattern of several
    valid: str | None = None
    test: str | None = None
    file: str | None = None  # one file instead of three, cut by `split`
    split: list[float] = MISSING
    split_bytes: list[int] = field(default_factory=list)  # enwik8/text8: sizes of train, valid, test
    vocab: VocabKind = MISSING
    lower_case: bool = MISSING
    min_freq: int = MISSING
    max_size: int | None = None  # keep the most frequent words only
    vocab_file: str | None = None  # words: one per line, in the order of their ids; bpe: tokens and ids, JSON
    merges_file: str | None = None  # bpe: pairs in the order of their rank
    eos: str = "<eos>"  # words: what ends a line,
    unk: str = "<unk>"  # and what stands for those outside the vocabulary, are called
    sentences: bool = False  # words: lines have no order; eos on both sides, shuffled each epoch, a file at a time
    shards: int | None = None  # how many files data.train must match
    cutoffs: list[int] = MISSING  # where the adaptive clusters begin
    vocab_size: int | None = None  # what encoding must yield, where it is known
    metric: Metric = MISSING
    cache: str = MISSING  # folder of the encoded splits
    url: str | None = None
    sha256: str | None = None
    max_bytes: int | None = None  # size cap of the corpus made from the standard library


@dataclass
class TrainConfig:
    batch_size: int = MISSING  # sequences per optimizer step, all ranks together
    local_batch_size: int | None = None  # ... of one rank: overrides batch_size with so many times the ranks
    micro_batch_size: int | None = None  # sequences per device and forward; null: from the cap
    grad_accum_steps: int | None = None  # instead of micro_batch_size: forward passes per optimizer step
    first_rank_batch_size: int | None = None  # of the first rank, whose device has less room; null: as the others
    micro_batch_cap: dict[str, dict[str, int]] | None = MISSING  # hardware -> precision -> largest micro batch
    max_step: int = MISSING
    tgt_len: int = MISSING
    mem_len: int = MISSING
    ext_len: int = MISSING
    clamp_len: int = MISSING
    same_length: bool = MISSING
    clip: float = MISSING  # largest gradient norm; 0: no clipping
    clip_nonemb: bool = MISSING  # measure and clip all but the embedding's gradient
    swap_mem: bool = MISSING  # keep the memories in the host's RAM between their uses (GPUs)
    sampled_softmax: int | None = None  # words that a step's softmax is computed over, besides targets; null: all
    varlen: bool = MISSING  # segments of varying length, around tgt_len
    roll: bool = MISSING  # rotate every column by a random amount each epoch
    log_interval: int = MISSING
    time_limit_minutes: float | None = None  # of every start: save, stop cleanly; resume=auto goes on
    target_throughput: float | None = None  # tokens/s; missed: exit code 3
    target_perplexity: float | None = None  # of the final test; missed: exit code 3


@dataclass
class ValidConfig:
    enabled: bool = MISSING  # false: neither validate nor test, only train
    interval: int = MISSING
    batch_size: int = MISSING
    tgt_len: int = MISSING
    max_steps: int | None = None  # segments; null: the whole split


@dataclass
class EvaluationConfig:
    """The published evaluation block that goes with the recipe (longer memory, clamped distances)."""

    tgt_len: int = MISSING
    mem_len: int = MISSING
    ext_len: int = MISSING
    clamp_len: int = MISSING
    same_length: bool = MISSING
    batch_size: int = MISSING


@dataclass
class CheckpointConfig:
    interval: int = MISSING  # steps; 0: only at validation and at the end
    minutes: float | None = MISSING  # and whenever this long has passed
    keep: int = MISSING  # newest checkpoints kept besides the best one
    save_all: bool = MISSING  # keep every one


@dataclass
class OptimizerConfig:
    name: OptimizerName = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = field(default_factory=list)  # lamb, adam
    eps: float | None = None  # lamb, adam, adagrad
    momentum: float | None = None  # sgd


@dataclass
class SchedulerConfig:
    name: SchedulerName = MISSING
    warmup_step: int = MISSING
    max_step: int | None = None  # length of the curve; null: train.max_step
    eta_min: float = MISSING  # where the cosine ends
    decay_rate: float | None = None  # dev_perf: factor on the rate after more than
    patience: int | None = None  # this many validations without progress,
    lr_min: float | None = None  # and its lower end
    first_update_at_base_lr: bool = MISSING  # as the reference: update n+1 uses lr_at(n), the first the base rate


@dataclass
class PrecisionConfig:
    name: Arithmetic = MISSING
    initial_loss_scale: float | None = None  # fp16 only


@dataclass
class HardwareConfig:
    name: str = MISSING
    gpus: int | None = MISSING  # per node; 0: CPU processes; null: as many as the machine has
    gpu: str | None = MISSING  # name of the accelerator, for tables; null: what the machine has
    memory_gb: float | None = MISSING  # of one accelerator


@dataclass
class ClusterConfig:
    """Where ranks run. All but the name is for cluster=slurm."""

    name: str = MISSING  # local; slurm: submit a job; srun: be a rank of the step that srun started
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int | None = None  # time limit of one attempt; a run goes on over as many as it takes
    cpus_per_task: int | None = None
    mem_gb: int | None = None  # per node
    signal_delay: int | None = None  # seconds before the time limit at which ranks save and requeue
    max_timeouts: int | None = None  # requeues after a time limit
    sbatch: list[str] = field(default_factory=list)  # further flags: ["--exclusive", "--gres=gpu:16"]
    srun: list[str] = field(default_factory=list)  # further flags: ["--cpu-bind=cores"]
    setup: list[str] = field(default_factory=list)  # shell lines before srun, such as "module load cuda"
    container: str | None = None  # image, for pyxis
    container_mounts: list[str] = field(default_factory=list)  # from:to, besides the working directory
    python: str | None = None  # on the nodes; null: the one that submits
    wait: bool = False  # follow rank 0's log and end with the job's status


@dataclass
class WandbConfig:
    mode: WandbMode = MISSING
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    tags: list[str] = MISSING
    job_type: str = MISSING
    name: str | None = None  # null: <name>-<run folder>


@dataclass
class TrackingConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    environment: bool = MISSING  # write environment.json (versions, devices, git state)
    dllogger: str | None = None  # file in the run folder: metrics in the original's format, lines of `DLLL {json}`


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


# --------------------------------------------------------------------------- derived lengths


def train_geometry(config: RunConfig) -> Geometry:
    t = config.train
    return Geometry(t.tgt_len, t.mem_len, t.ext_len, t.clamp_len, t.same_length)


def valid_geometry(config: RunConfig) -> Geometry:
    """Lengths of validation: what shorter segments give up goes to the memory, or to ext_len where there is none."""
    t, tgt_len = config.train, config.valid.tgt_len
    spare = t.tgt_len - tgt_len
    if t.mem_len == 0:
        return Geometry(tgt_len, 0, t.ext_len + spare, t.clamp_len, t.same_length)
    return Geometry(tgt_len, t.mem_len + spare, t.ext_len, t.clamp_len, t.same_length)


VARLEN_SHORTEST, VARLEN_EXCESS = 5, 15  # train.varlen: tokens at least; at most so many more than train.tgt_len


def longest_context(train: Mapping[str, Any]) -> int:
    """Tokens that training sees at once, at most: the rows of learned position tables.

    train: lengths by name, of a TrainConfig, or of a checkpoint that may be older than `varlen`.
    """
    longest = train["tgt_len"] + VARLEN_EXCESS * bool(train.get("varlen"))
    return longest + train["ext_len"] + train["mem_len"]


def is_multi_node(recipe: Recipe, nodes: int) -> bool:
    """Whether the published multi-node values hold."""
    return recipe is Recipe.multi_node or (recipe is Recipe.auto and nodes > 1)
