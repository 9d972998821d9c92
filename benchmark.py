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
from txl.config.schema import BenchmarkConfig, Suite

submitted: list = []  # jobs that cluster.wait=true waits for, when all points of a sweep are submitted


def start(config: BenchmarkConfig) -> int:
    if config.suite is Suite.encoding:  # needs no torch, and to be small
        from txl.bench import encoding as encoding_speed

        return encoding_speed.run(config)
    if config.suite is Suite.train:
        from txl.launch import train_benchmark

        return train_benchmark.run(config, submitted)
    from txl.bench import inference as inference_speed

    return inference_speed.run(config)


def wait() -> int:
    if not submitted:
        return 0
    from txl.launch.wait_for_jobs import wait as wait_for

    return wait_for(submitted)


if __name__ == "__main__":
    sys.exit(run("benchmark", BenchmarkConfig, start, __doc__, wait))
