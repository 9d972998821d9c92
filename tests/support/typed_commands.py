"""How a command of the documents is run on this machine: with tiny settings, or not at all, and then why.

A command that cannot run here has a line in NOT_HERE. Everything else runs: what needs GPUs or a cluster as a dry run,
which composes, checks and plans it; trainings for two steps of a tiny model; what reads a run, on a tiny one.
"""

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser

RUN = "runs/wt103-base/HASH-s1111"  # what the documents call their run

# A pattern of the typed line, and why it is not run.
NOT_HERE = {
    r"make ": "installs packages, or runs tests for minutes; .ci/run does so",
    r"(srun|torchrun) ": "an allocation of SLURM, or eight GPUs: tests/launch and tests/system start both",
    r"txl download ": "the network: tests/data/test_download.py has a server of its own",
    r"txl replay ": "a training that has diverged: tests/train/test_divergence.py",
    r"txl cancel ": "a run that goes on: tests/launch/test_status.py",
    r"python tests/score_speed.py": "half an hour",
}

NEEDS_GPUS = r"slurm_array|hardware=(dgx|h100|h200)|nodes=|gpus=8|gpus=4 |model=large|precision=(fp16|tf32|bf16)"
PLACES = {"RUN": RUN, "CHECKPOINT": RUN, "...": RUN, "runs/.../best": f"{RUN}/checkpoints/best"}
MODELS = PLACES | {"FOLDER": RUN}  # of checkpoint=FOLDER, which stands for an imported model

TINY_MODEL = "model.n_layer=1 model.n_head=2 model.d_model=16 model.d_head=8 model.d_inner=32".split()
TINY_TRAINING = """
train.max_step=2 train.batch_size=4 train.local_batch_size=null train.micro_batch_size=null train.tgt_len=8
train.mem_len=8 valid.interval=2 valid.max_steps=2 valid.tgt_len=8 valid.batch_size=2 scheduler.warmup_step=1
evaluation.batch_size=2 evaluation.tgt_len=8 evaluation.mem_len=8 hardware=cpu
""".split()
TINY_EVALUATION = ["max_steps=2", "batch_size=2", "hardware=cpu"]
TINY_BENCHMARK = [*TINY_MODEL, "model.div_val=1", "hardware=cpu", "benchmark.segments=2"]


def why_not_here(words: list[str]) -> str | None:
    """Why a command is not run; None if it is."""
    line = shlex.join(words)
    return next((why for pattern, why in NOT_HERE.items() if re.match(pattern, line)), None)


def as_run_here(words: list[str], number: int) -> list[str]:
    """The arguments of `txl` that stand for a command of the documents on this machine.

    Args:
        words: What is typed.
        number: Of the command; an import writes to a folder of its own.
    """
    program, *rest = words
    if program.endswith("python"):
        rest = [rest[0].removesuffix(".py"), *rest[1:]]
    command, arguments = rest[0], [_place(word, number) for word in rest[1:]]
    if command == "train":
        return _training(arguments)
    if command in ("evaluate", "generate", "score"):
        return [command, *_without_cluster(arguments), *_evaluation(command, arguments)]
    if command == "benchmark":
        return _benchmark(arguments)
    if command == "search":
        arguments[arguments.index("--trials") + 1] = "2"
        return [command, *arguments, *TINY_TRAINING, *TINY_MODEL]
    return [command, *arguments]


def _place(word: str, number: int) -> str:
    """A word with the folder of the prepared run in place of what stands for one."""
    key, equals, value = word.rpartition("=")
    if word == "FOLDER":
        return f"FOLDER-{number}"
    return f"{key}{equals}{(MODELS if equals else PLACES).get(value, value)}"


def _without(arguments: list[str], *words: str) -> list[str]:
    return [word for word in arguments if word not in words]


def _without_cluster(arguments: list[str]) -> list[str]:
    return [word for word in arguments if not re.match(r"hardware=|nodes=|gpus=|cluster\.wait=", word)]


def _training(arguments: list[str]) -> list[str]:
    line = " ".join(arguments) + " "
    arguments = _without(arguments, RUN)  # `...`: any options
    plain = _without(arguments, "-m")
    if "--cfg" in arguments or "--help" in arguments:
        return ["train", *plain]
    if re.search(NEEDS_GPUS, line):
        machine = [] if "hardware=" in line else ["hardware=h100"]
        return ["train", *first_point(plain), *machine, *_vocabulary(line), "dry_run=true"]
    words = ["train.sampled_softmax=8"] if "sampled_softmax" in line else []  # of a small vocabulary
    return ["train", *arguments, *TINY_TRAINING, *TINY_MODEL, *_vocabulary(line), *words]


def _vocabulary(line: str) -> list[str]:
    """What the small stand-ins of the data sets need: no clusters of words that they do not have."""
    if "data=ids" in line:
        return []
    is_wt103 = "data=" not in line and "experiment=" not in line
    cutoffs = ["data.cutoffs=[]"] if is_wt103 or re.search("data=wt103|wikitext-mini|data=text", line) else []
    return cutoffs + (["data.vocab_size=null"] if is_wt103 or "data=wt103" in line else [])


def first_point(arguments: list[str]) -> list[str]:
    """The overrides of the first point of a sweep, without what is Hydra's own."""
    kept = [word for word in arguments if not word.startswith("hydra")]
    parsed = OverridesParser.create().parse_overrides(kept)
    return [
        f"{one.key_or_group}={next(iter(one.sweep_string_iterator()))}" if one.is_sweep_override() else word
        for one, word in zip(parsed, kept, strict=True)
    ]


def _evaluation(command: str, arguments: list[str]) -> list[str]:
    if command == "score" or "text=" in " ".join(arguments):
        return ["hardware=cpu"]
    if command == "generate" or "task=generate" in arguments:
        return [
            "hardware=cpu",
            *([] if any(word.startswith("max_tokens=") for word in arguments) else ["max_tokens=5"]),
        ]
    return TINY_EVALUATION


def _benchmark(arguments: list[str]) -> list[str]:
    line = " ".join(arguments)
    if re.search(r"hardware=dgx|attention=", line):
        return ["benchmark", *first_point(_without(arguments, "-m")), "dry_run=true"]
    if "suite=encoding" in line:
        return ["benchmark", *arguments, "benchmark.megabytes=1"]
    sizes = ["benchmark.micro_batch_sizes=[2]"] if "suite=train" in line else ["benchmark.batch_sizes=[1]"]
    kept = [word.replace("compile,", "") for word in _without_cluster(arguments)]
    return ["benchmark", *kept, *TINY_BENCHMARK, *sizes]
