"""Trainers on made-up tokens for tests/gpu_check.py, on the GPU or, for a rehearsal, small ones on a CPU."""

import gc

import pytest
import torch

from tests.support.configurations import composed
from txl.bench.train_step import MadeUpCorpus
from txl.config.schema import BenchmarkConfig
from txl.model import transformer
from txl.plan.run_plan import make_plan
from txl.system.compiled_programs import forget_compiled_programs
from txl.system.world import World
from txl.tracking.tracker import Tracker
from txl.train.trainer import Trainer

TINY = ["hardware=cpu", "model.n_layer=2", "model.d_model=16", "model.n_head=2", "model.d_head=8", "model.d_inner=32"]
TINY += ["train.tgt_len=16", "train.mem_len=16", "valid.tgt_len=16", "data.vocab_size=300", "data.cutoffs=[20,60]"]
TINY += ["evaluation.tgt_len=8", "evaluation.mem_len=16", "evaluation.clamp_len=-1"]


def device_of(tiny: bool) -> torch.device:
    return torch.device("cpu" if tiny else "cuda")


def benchmark_config(tiny: bool, model: str, *overrides: str) -> BenchmarkConfig:
    """The configuration of `benchmark.py suite=train model=MODEL`, with tiny sizes for a rehearsal."""
    sizes = TINY if tiny else ["hardware=auto"]
    given = [f"model={model}", "debug=true", *sizes, *overrides]
    return composed("suite=train", *given, name="benchmark", kind=BenchmarkConfig)


def drawn_on_the_gpu(patch: pytest.MonkeyPatch, tiny: bool) -> None:
    """Leave the weights of new models unset on the CPU, where drawing 192 million takes seconds; see `draw_weights`."""
    if not tiny:
        patch.setattr(transformer, "initialise_weights", lambda model, config: None)


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of the usual size, drawn where the model is."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias") and "content" not in name and "position" not in name:
            parameter.zero_()
        else:
            parameter.normal_(0, 0.02)


def made_trainer(tiny: bool, model: str, micro: int, steps: int, *overrides: str) -> Trainer:
    """A trainer in training mode with tokens for this many steps. Programs of earlier ones are forgotten."""
    clean_up()
    config = benchmark_config(tiny, model, f"train.batch_size={micro}", f"train.micro_batch_size={micro}", *overrides)
    vocab_size = config.data.vocab_size
    assert vocab_size is not None
    corpus = MadeUpCorpus(vocab_size, micro * (config.train.tgt_len * (steps + 1) + 2), 0)
    with pytest.MonkeyPatch.context() as patch:
        drawn_on_the_gpu(patch, tiny)
        plan = make_plan(config, vocab_size)
        trainer = Trainer(config, plan, corpus, World(), device_of(tiny), Tracker())
    if not tiny:
        draw_weights(trainer.model)
    trainer.model.train()
    return trainer


def clean_up() -> None:
    """Forget compiled programs and free what earlier cases hold of the GPU's memory."""
    forget_compiled_programs()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
