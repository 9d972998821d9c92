"""What a user can do after a training or a sweep: commands that can be copied, with the folders that were written."""

import shlex
import shutil
import sys
from pathlib import Path

from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.resolve import resolve_checkpoint
from txl.config.schema import RunConfig
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.files import read_json, short_path
from txl.plan.run_plan import run_folder

PROMPTS = {"stdlib": "import "}  # by data set: how a text begins
TRIED = 100  # first tokens of a vocabulary that may be the prompt


def own_command() -> str:
    """How this program is started here: `txl` or `python -m txl` if the shell finds this installation's."""
    python = Path(sys.executable)
    script = python.with_name("txl")
    found = shutil.which("txl")
    if found and script.exists() and Path(found).resolve() == script.resolve():
        return "txl"
    if (found := shutil.which("python")) and Path(found).absolute() == python:
        return "python -m txl"
    return shlex.quote(str(short_path(script))) if script.exists() else f"{shlex.quote(sys.executable)} -m txl"


def commands_after_training(config: RunConfig) -> list[str]:
    """Commands that evaluate a finished run, continue a text with it, and compare it with others."""
    run = Path(run_folder(config))
    folder, command = shlex.quote(str(short_path(run))), own_command()
    prompt = _prompt(run, config)
    quoted = shlex.quote(f"prompt={prompt}") if set(prompt) & set('"$`!\\') else f'prompt="{prompt}"'
    return [
        f"{command} evaluate checkpoint={folder}",
        f"{command} generate checkpoint={folder} {quoted}",
        f"{command} report {folder}",
    ]


def _prompt(run: Path, config: RunConfig) -> str:
    usual = PROMPTS.get(config.data.name, "The ")
    try:
        vocab = vocabulary_from_dict(read_checkpoint_file(resolve_checkpoint(run), "vocabulary.json"))
    except ConfigError:  # the checkpoints were deleted: nothing can be generated
        return usual
    vocab.typed_text = config.data.typed_text
    return known_prompt(vocab, usual)


def known_prompt(vocab: Vocabulary, usual: str) -> str:
    """How a text can begin, of tokens that the vocabulary has: as usual, or with one of its first tokens."""
    tokens = (vocab.to_typed_text([i]) for i in range(min(len(vocab.tokens), TRIED)))
    return next((text for text in (usual, usual.lower(), *tokens) if _is_known(text, vocab)), usual)


def _is_known(text: str, vocab: Vocabulary) -> bool:
    try:
        ids = vocab.encode_typed(text, end_line=False).tolist()
    except ConfigError:
        return False
    return bool(text.strip()) and text.isprintable() and not {vocab.eos_id, vocab.unk_id} & set(ids)


def commands_after_sweep(runs: list[Path]) -> list[str]:
    """Commands that compare all runs of a sweep, and evaluate the one with the lowest validation loss."""
    folders = list(dict.fromkeys(short_path(run).parent for run in runs))
    compare = " ".join(shlex.quote(str(folder)) for folder in folders)
    commands = [f"{own_command()} report {compare}"]
    losses = {run: (read_json(run / "summary.json") or {}).get("best_valid_loss") for run in runs}
    measured = {run: loss for run, loss in losses.items() if isinstance(loss, int | float)}
    if measured:
        best = shlex.quote(str(short_path(min(measured, key=measured.__getitem__))))
        commands.append(f"{own_command()} evaluate checkpoint={best}")
    return commands


def show_next_commands(configs: list[RunConfig], is_sweep: bool) -> None:
    """Print what can follow the runs that have ended: for a sweep first the table that compares them.

    Args:
        configs: Trainings that have reached their end.
        is_sweep: They are the points of a sweep.
    """
    runs = [Path(run_folder(config)) for config in configs]
    if is_sweep and len(runs) > 1:
        from txl.report.__main__ import main as report

        print(flush=True)
        report([str(short_path(run)) for run in runs])
    commands = commands_after_sweep(runs) if is_sweep else commands_after_training(configs[0])
    print("\nNext:", *(f"  {line}" for line in commands), sep="\n", flush=True)
