"""Train a Transformer-XL language model; without arguments, base on WikiText-103.

Examples:
  txl train experiment=demo                          anywhere, no download, about two minutes
  txl train model=large precision=bf16 gpus=8        the published recipe on 8 GPUs
  txl train ... dry_run=true                         print the plan, start nothing
  txl train ... resume=auto                          go on where this run stopped
  txl train -m experiment=demo 'seed=range(1,7)'     several runs, one after the other
  txl train model=small data=text data.vocab=char data.file=a.txt 'data.split=[.9,.05,.05]'
"""

from txl.cli.entry import run_command


def main(arguments: list[str]) -> int:
    """Run `txl train arguments`; returns the exit code."""
    return run_command("train", str(__doc__), arguments)
