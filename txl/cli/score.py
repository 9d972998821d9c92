"""Score many texts with a trained Transformer-XL: nats and tokens of every line of a file, read together.

Examples:
  txl score checkpoint=runs/demo/HASH-s1111 file=hyps.txt scores=hyps.tsv      id, nats, tokens of every line
  txl score checkpoint=... file=hyps.txt scores=hyps.jsonl token_losses=true   with the loss of every token
  txl score checkpoint=... file=answers.txt context=question.txt               the context is read once
  txl score checkpoint=... file=lines.txt context=previous                     every line after all lines before it
"""

from txl.cli.entry import run_command


def main(arguments: list[str]) -> int:
    """Run `txl score arguments`, which is `txl evaluate task=score arguments`; returns the exit code."""
    return run_command("evaluate", str(__doc__), ["task=score", *arguments])
