"""Evaluate a trained Transformer-XL: loss and perplexity or bits per character, with the lengths they hold for.

Examples:
  txl evaluate checkpoint=runs/demo/HASH-s1111               the recipe's published evaluation
  txl evaluate checkpoint=... split=valid mem_len=640        another split, a longer memory
  txl evaluate checkpoint=... clamp_len=400 same_length=true
  txl evaluate checkpoint=... precision=bf16 gpus=8          on 8 GPUs: the same number, sooner
  txl evaluate checkpoint=... latency=true runtime=export    percentiles; auto, eager, cached, compile, ...
  txl evaluate checkpoint=... text="recognize speech"        the loss of a text; - reads standard input
  txl evaluate checkpoint=... task=generate prompt="The "    a text that goes on from there
  txl evaluate checkpoint=... json=result.json               for a script
"""

from txl.cli.entry import run_command


def main(arguments: list[str]) -> int:
    """Run `txl evaluate arguments`; returns the exit code."""
    return run_command("evaluate", str(__doc__), arguments)
