"""Measure a Transformer-XL on this machine; random weights of the model's shape unless a checkpoint is named.

Examples:
  txl benchmark suite=inference                                  base: 64 tokens at a time, memory 640
  txl benchmark suite=inference model=large benchmark.batch_sizes=[1,8]
  txl benchmark suite=inference benchmark.runtimes=[cached,export] benchmark.precisions=[fp32,bf16]
  txl benchmark suite=inference benchmark.checkpoint=runs/... benchmark.json=table.json
  txl benchmark suite=train benchmark.micro_batch_sizes=[4,16]   a training step and its parts, MFU, memory
  txl benchmark suite=train benchmark.processes=[1,2]            and how it grows with the processes
  txl benchmark -m suite=train hardware=dgx2 nodes=1,2,4,8       on several nodes: submits a job for each
  txl benchmark suite=encoding benchmark.megabytes=540           words of a text to ids, beside a plain loop
"""

import sys

from txl.cli.entry import run_command
from txl.system.process_exit import BAD_CONFIGURATION


def main(arguments: list[str]) -> int:
    """Run `txl benchmark arguments`; returns the exit code. Without arguments nothing is measured."""
    if not arguments:
        print(
            "error: say what to measure, which takes minutes: suite=inference, suite=train or suite=encoding; "
            "--help explains",
            file=sys.stderr,
        )
        return BAD_CONFIGURATION
    return run_command("benchmark", str(__doc__), arguments)
