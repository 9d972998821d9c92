"""
Evaluate a trained Transformer-XL: loss and perplexity or bits per character, with the lengths they hold for.

  python evaluate.py checkpoint=runs/demo/HASH-s1111               the recipe's published evaluation
  python evaluate.py checkpoint=... split=valid mem_len=640        another split, a longer memory
  python evaluate.py checkpoint=... clamp_len=400 same_length=true
  python evaluate.py checkpoint=... precision=bf16 gpus=8          on 8 GPUs: the same number, sooner
  python evaluate.py checkpoint=... latency=true runtime=export    percentiles; auto, eager, cached, compile, ...
  python evaluate.py checkpoint=... text="recognize speech"        the loss of a text; - reads standard input
  python evaluate.py checkpoint=... task=generate prompt="The "    a text that goes on from there
  python evaluate.py checkpoint=... json=result.json               for a script
"""

import sys

from txl.cli.hydra_main import run
from txl.config.schema import EvaluateConfig

if __name__ == "__main__":
    sys.exit(run("evaluate", EvaluateConfig, __doc__))
