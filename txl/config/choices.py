"""What an option may be, where it may be one of a few things."""

from enum import Enum


class Positions(Enum):
    """How a model knows where a token stands (attention.py)."""

    relative = "relative"  # Transformer-XL, section 3.3
    shaw = "shaw"  # learned keys and biases per distance (Shaw et al. 2018)
    absolute = "absolute"  # sinusoids added to the embedding (Vaswani et al. 2017)
    absolute_per_layer = "absolute_per_layer"  # learned, added at every layer (Al-Rfou et al. 2018)


class Init(Enum):
    normal = "normal"
    uniform = "uniform"


class VocabKind(Enum):
    word = "word"
    byte = "byte"
    char = "char"
    bpe = "bpe"  # byte pairs, as GPT-2's


class Metric(Enum):
    ppl = "ppl"
    bpc = "bpc"


class Arithmetic(Enum):
    fp64 = "fp64"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class OptimizerName(Enum):
    lamb = "lamb"
    adam = "adam"
    sgd = "sgd"
    adagrad = "adagrad"


class SchedulerName(Enum):
    cosine = "cosine"
    inv_sqrt = "inv_sqrt"
    dev_perf = "dev_perf"
    constant = "constant"


class Recipe(Enum):
    auto = "auto"
    single_node = "single_node"
    multi_node = "multi_node"


class WandbMode(Enum):
    none = "none"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Split(Enum):
    train = "train"
    valid = "valid"
    test = "test"
    all = "all"  # valid, then test


class AttentionBackend(Enum):
    """What computes attention in training (attention.py); all are equal but for rounding."""

    auto = "auto"  # triton on GPUs since Ampere, in half precision and TF32; eager otherwise
    eager = "eager"
    sdpa = "sdpa"  # torch's scaled_dot_product_attention, with the distances' scores as its mask
    triton = "triton"  # one kernel for all of it (kernels/relative_attention.py); GPUs only


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
