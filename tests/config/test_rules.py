"""Every impossible configuration has one line that says so."""

import pytest

from tests.support.configurations import composed
from txl.config.model import Positions
from txl.config.optimizer import OptimizerName
from txl.config.schema import EvaluateConfig, RunConfig
from txl.errors import ConfigError

REFUSED = {
    # one value
    "model.n_layer=0": "model.n_layer=0 must be above 0",
    "train.tgt_len=-3": "train.tgt_len=-3 must be above 0",
    "train.mem_len=-1": "train.mem_len=-1 must be 0 or more",
    "train.max_step=0": "train.max_step=0 must be above 0",
    "train.local_batch_size=0": "train.local_batch_size=0 must be above 0",
    "train.grad_accum_steps=0": "train.grad_accum_steps=0 must be above 0",
    "train.grad_accum_steps=2 train.micro_batch_size=4": "train.grad_accum_steps=2 excludes train.micro_batch_size=4",
    "valid.enabled=false scheduler=dev_perf": "valid.enabled=false leaves scheduler=dev_perf nothing to follow",
    "valid.enabled=false then=evaluate": "valid.enabled=false excludes then=evaluate",
    "valid.enabled=false train.target_perplexity=9": "valid.enabled=false excludes train.target_perplexity=9",
    "debug=true cluster=slurm hardware=cpu": "debug=true leaves no run folder, which a SLURM job needs",
    "tracking.dllogger=metrics.jsonl": "tracking.dllogger=metrics.jsonl must be the name of a file in the run folder",
    "tracking.dllogger=../log.json": "tracking.dllogger=../log.json must be the name of a file in the run folder",
    "debug=true resume=runs/a": "resume=runs/a would move what was saved in that run folder",
    "train.batch_size=0": "train.batch_size=0 must be above 0",
    "valid.interval=0": "valid.interval=0 must be above 0",
    "optimizer.lr=nan": "optimizer.lr=NaN must be above 0",
    "optimizer.lr=inf": "optimizer.lr=Infinity must be above 0",
    "gpus=0": "gpus=0 must be above 0",
    "nodes=0": "nodes=0 must be above 0",
    "seed=-1": "seed=-1 must be 0 or more",
    "seed=18446744073709551616": "seed=18446744073709551616 must be 0 or more and at most 18446744073709551615",
    "model.n_layer=10000000": "model.n_layer=10000000 must be above 0 and at most 10000",
    "model.dropout=.999999": "model.dropout=0.999999 must be 0 or more and at most 0.999",
    "optimizer=sgd optimizer.momentum=1": "optimizer.momentum=1.0 must be 0 or more and below 1",
    "model.dropout=1.0": "model.dropout=1.0 must be 0 or more and at most 0.999",
    "train.clamp_len=0": "train.clamp_len=0 must be above 0, or -1",
    "evaluation.clamp_len=-2": "evaluation.clamp_len=-2 must be above 0, or -1",
    "name=../up": "name=../up must be one folder name",
    "resume=''": "resume='' must name a folder",
    # model
    "model.d_model=511": "model.d_model=511 must be even for the sinusoids of model.positions=relative; use 512",
    "model.adaptive=false model.div_val=2": "model.div_val=2 needs model.adaptive=true",
    "model.div_val=16": "model.div_val=16 leaves cluster 3 of data.cutoffs no width: model.d_model=512",
    "model.d_embed=8 model.div_val=4": "model.d_embed=8 is too small",
    "model.tie_projs=[]": "model.tie_projs=[] needs an entry",
    "model.positions=absolute_per_layer": "evaluation.clamp_len=400 has no meaning for model.positions=absolute_per_",
    # data
    "data.cutoffs=[5,5]": "data.cutoffs=[5,5] must rise from above 0",
    "data.cutoffs=[0,5]": "data.cutoffs=[0,5] must rise from above 0",
    "data.cutoffs=[267735]": "data.cutoffs=[267735] must end below data.vocab_size=267735",
    "data=text data.file=a data.split=[.9,.2]": "data.split=[0.9,0.2] must be two or three fractions",
    "data=text data.file=a data.split=[1.5,-.5]": "data.split=[1.5,-0.5] must be two or three fractions",
    "data=text data.file=a data.split=[]": "data.split=[] must be two or three fractions",
    "data=enwik8 data.split_bytes=[1,2]": "data.split_bytes=[1,2] must be three sizes",
    "data=text": "data.train=null but data=text needs files: data.train=a.txt",
    "data=text data.train=a": "data.valid=null but data=text needs files",
    "data=text data.train=a data.valid=b data.file=c": "data.train=a excludes data.file",
    "data=enwik8 data.lower_case=true": "data.lower_case=true has no meaning for data.vocab=byte; leave it out",
    "data=text8 data.min_freq=2": "data.min_freq=2 has no meaning for data.vocab=char",
    "data=enwik8 data.sentences=true": "data.sentences=true has no meaning for data.vocab=byte",
    "data=text8 data.eos=END": "data.eos=END has no meaning for data.vocab=char",
    "data.unk=''": "data.unk='' must be one word",
    "data.eos=END data.unk=END": "data.unk=END must be another word than data.eos",
    "data.vocab=bpe": "data.vocab_file=null is needed by data.vocab=bpe: GPT-2's two files, or others like them",
    "data.vocab=bpe data.vocab_file=a": "data.merges_file=null is needed by data.vocab=bpe",
    "data=enwik8 data.vocab_file=a": "data.vocab_file=a has no meaning for data.vocab=byte; leave it out",
    "data=lm1b data.merges_file=a": "data.merges_file=a has no meaning for data.vocab=word",
    "data=lm1b data.min_freq=3": "data.min_freq=3 chooses among the words of train, but data.vocab_file=1b_w",
    "data=lm1b data.shards=0": "data.shards=0 must be above 0",
    # lengths
    "valid.tgt_len=385": "valid.tgt_len=385 must be at most train.tgt_len + train.mem_len = 384",
    "train.mem_len=0 valid.tgt_len=200": "valid.tgt_len=200 must be at most train.tgt_len + train.ext_len = 192",
    "train.mem_len=0 train.same_length=true": "train.same_length=true needs a memory",
    "evaluation.mem_len=0": "evaluation.same_length=true needs a memory",
    # optimizer, schedule
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9] must be two numbers",
    "optimizer.betas=[0.9,1.0]": "optimizer.betas=[0.9,1.0] must be two numbers",
    "optimizer=sgd optimizer.betas=[0.9,0.99]": "optimizer.betas=[0.9,0.99] has no meaning for optimizer=sgd",
    "optimizer.momentum=0.9": "optimizer.momentum=0.9 has no meaning for optimizer=lamb",
    "optimizer.eps=null": "optimizer.eps=null is needed by optimizer=lamb",
    "scheduler.warmup_step=40000": "scheduler.warmup_step=40000 must be below train.max_step=40000",
    "scheduler.max_step=500": "scheduler.warmup_step=1000 must be below scheduler.max_step=500",
    "optimizer.lr=1e-4": "scheduler.eta_min=0.001 must be at most optimizer.lr=0.0001",
    "scheduler.patience=3": "scheduler.patience=3 has no meaning for scheduler=cosine",
    "scheduler=dev_perf scheduler.decay_rate=1": "scheduler.decay_rate=1.0 must be in (0,1)",
    "scheduler=dev_perf valid.interval=40000": "valid.interval=40000 must be below train.max_step=40000",
    # machine
    "hardware=cpu precision=fp16": "precision=fp16 needs a GPU, and hardware=cpu has none; use precision=bf16",
    "hardware=cpu precision=tf32": "precision=tf32 needs a GPU, and hardware=cpu has none; use precision=fp32",
    "hardware=dgx2 precision=tf32": "precision=tf32 needs an Ampere or newer GPU, but hardware=dgx2 has V100",
    "precision.initial_loss_scale=8": "precision.initial_loss_scale=8.0 is for precision=fp16 alone",
    "train.first_rank_batch_size=0": "train.first_rank_batch_size=0 must be above 0",
    "train.first_rank_batch_size=256": "train.first_rank_batch_size=256 must be below train.batch_size=256",
    "train.first_rank_batch_size=2 train.local_batch_size=4": "first_rank_batch_size=2 excludes train.local_batch_size",
    "train.varlen=true train.tgt_len=4 valid.tgt_len=4": "train.varlen=true draws lengths of 5 and more",
    # learning rates of groups
    "optimizer.lr_scale=[embedding]": "optimizer.lr_scale=embedding must be a pattern of names and a factor",
    'optimizer.lr_scale=["*.bias=-1"]': "optimizer.lr_scale=*.bias=-1 must be a pattern of names and a factor",
    'optimizer.lr_scale=["embeding.*=2"]': "optimizer.lr_scale=embeding.* matches no parameter: their names begin with",
    # rotary positions
    "model.positions=rotary": "evaluation.clamp_len=400 has no meaning for model.positions=rotary: the angle between",
    "model.positions=rotary evaluation.clamp_len=-1 train.clamp_len=9": "use train.clamp_len=-1",
    "model.positions=rotary evaluation.clamp_len=-1 model.d_head=63": "model.d_head=63 must be even",
    # sampled softmax
    "train.sampled_softmax=0": "train.sampled_softmax=0 must be above 0",
    "train.sampled_softmax=99": "sampled_softmax=99 needs one softmax, and data.cutoffs=[19997,39997,199997] divide it",
    "train.sampled_softmax=99 model.adaptive=false": "sampled_softmax=99 steps drawn rows only, but optimizer=lamb",
    "train.sampled_softmax=99 data=ptb optimizer=sgd optimizer.weight_decay=0.1": "excludes optimizer.weight_decay=0.1",
    "nodes=2 hardware=cpu": "nodes=2 needs a launcher that starts every node",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_impossible_configurations_are_refused_in_one_line(overrides, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError) as error:
        composed(*overrides.split())
    assert REFUSED[overrides] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*OptimizerName, *Positions])
def test_every_optimizer_and_positional_scheme_states_its_facts(name):
    assert name.facts is not None


ACCEPTED = [
    "train.max_step=500 scheduler.max_step=40000",  # the beginning of a longer curve
    "scheduler=constant scheduler.warmup_step=50000",  # a run may end within its warm-up
    "scheduler=inv_sqrt train.max_step=10",
    "train.mem_len=0 train.ext_len=64 valid.tgt_len=256",
    "model.positions=shaw model.d_model=511",
    "model.positions=absolute_per_layer evaluation.clamp_len=-1",
    "model.positions=rotary evaluation.clamp_len=-1 model.d_model=511",
    "model.adaptive=false data.cutoffs=[5,3000]",
    "nodes=2 hardware=cpu dry_run=true",
    "optimizer=sgd optimizer.momentum=0.9",
    "data=text data.file=a data.split=[.9,.1]",
    "train.sampled_softmax=8192 model.adaptive=false optimizer=adagrad",
    'optimizer.lr_scale=["layers.*.norm.*=0","*.bias=2e-3","soft*=1.5"]',
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_unusual_configurations_that_work_are_accepted(overrides):
    assert isinstance(composed(*overrides.split()), RunConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tgt_len=0"], "tgt_len=0 must be above 0"),
        (["mem_len=-1"], "mem_len=-1 must be 0 or more"),
        (["clamp_len=0"], "clamp_len=0 must be above 0, or -1"),
        (["hardware=cpu", "precision=fp16"], "precision=fp16 needs a GPU"),
    ],
)
def test_impossible_evaluations_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed("checkpoint=x", *overrides, name="evaluate", kind=EvaluateConfig)
