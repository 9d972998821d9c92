"""
Measure a Transformer-XL on this machine; random weights of the model's shape unless a checkpoint is named.

  python benchmark.py suite=inference                                  base: 64 tokens at a time, memory 640
  python benchmark.py suite=inference model=large benchmark.batch_sizes=[1,8]
  python benchmark.py suite=inference benchmark.runtimes=[cached,export] benchmark.precisions=[fp32,bf16]
  python benchmark.py suite=inference benchmark.checkpoint=runs/... benchmark.json=table.json
  python benchmark.py suite=train benchmark.micro_batch_sizes=[4,16]   a training step and its parts, MFU, memory
  python benchmark.py suite=train benchmark.processes=[1,2]            and how it grows with the processes
  python benchmark.py -m suite=train hardware=dgx2 nodes=1,2,4,8       on several nodes: submits a job for each
  python benchmark.py suite=encoding benchmark.megabytes=540           words of a text to ids, beside a plain loop
"""

import sys

from txl.cli.hydra_main import run
from txl.config.schema import BenchmarkConfig

if __name__ == "__main__":
    sys.exit(run("benchmark", BenchmarkConfig, __doc__))
