"""
Train a Transformer-XL language model; without arguments, base on WikiText-103.

  python train.py experiment=demo                          anywhere, no download, about two minutes
  python train.py model=large precision=bf16 gpus=8        the published recipe on 8 GPUs
  python train.py ... dry_run=true                         print the plan, start nothing
  python train.py ... resume=auto                          go on where this run stopped
  python train.py -m experiment=demo 'seed=range(1,7)'     several runs, one after the other
  python train.py model=small data=text data.vocab=char data.file=a.txt 'data.split=[.9,.05,.05]'
"""

import sys

from txl.cli.hydra_main import run
from txl.config.schema import RunConfig

if __name__ == "__main__":
    sys.exit(run("train", RunConfig, __doc__))
