"""What a user can do after a training or a sweep: commands that can be copied, with the folders that were written."""

import shlex
import shutil
import sys
from pathlib import Path

from txl.config.schema import RunConfig
from txl.files import read_json, short_path
from txl.plan.run_plan import run_folder

PROMPTS = {"stdlib": "import "}  # by data set: how a text begins


def own_command() -> str:
    """How this program is started here: `txl` if that is this installation's, otherwise `python -m txl`."""
    script = Path(sys.executable).with_name("txl")
    found = shutil.which("txl")
    return "txl" if found and script.exists() and Path(found).resolve() == script.resolve() else "python -m txl"


def commands_after_training(config: RunConfig) -> list[str]:
    """Commands that evaluate a finished run, continue a text with it, and compare it with others."""
    folder = shlex.quote(str(short_path(Path(run_folder(config)))))
    command, prompt = own_command(), PROMPTS.get(config.data.name, "The ")
    return [
        f"{command} evaluate checkpoint={folder}",
        f'{command} generate checkpoint={folder} prompt="{prompt}"',
        f"{command} report {folder}",
    ]


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
