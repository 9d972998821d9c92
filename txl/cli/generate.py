"""Let a trained Transformer-XL continue a text.

Examples:
  txl generate checkpoint=runs/demo/HASH-s1111 prompt="The history of" max_tokens=200
  txl generate checkpoint=... prompt=- temperature=0.9 top_k=40 top_p=0.95 seed=1    reads standard input
  txl generate checkpoint=... prompt="The " temperature=0                             always the likeliest token
  txl generate checkpoint=... prompt="The " stop="\\n\\n" stop_tokens=eos min_p=0.05   where it ends
  txl generate checkpoint=... prompts=prompts.txt json=texts.json                     one prompt per line
"""

from txl.cli.entry import run_command


def main(arguments: list[str]) -> int:
    """Run `txl generate arguments`, which is `txl evaluate task=generate arguments`; returns the exit code."""
    return run_command("evaluate", str(__doc__), ["task=generate", *arguments])
