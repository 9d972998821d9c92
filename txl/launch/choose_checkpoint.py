"""Which checkpoint a run continues from, and whether it may."""

from pathlib import Path

from txl.checkpoint.find import CheckpointError, newest_intact, read_document, step_folders, verify_checkpoint
from txl.checkpoint.resolve import resolve_checkpoint
from txl.config.compose import to_dict
from txl.config.resume_changes import final_evaluations, resume_differences
from txl.config.schema import RunConfig
from txl.errors import ConfigError
from txl.files import read_json


def find_checkpoint(config: RunConfig, run_dir: Path, submitted: bool = False) -> tuple[str | None, bool]:
    """Where a run continues, and whether it is finished already.

    Args:
        config: The run, with `resume` as the user gave it.
        run_dir: Its folder.
        submitted: The folder was written for this start: that it exists does not mean that a run began there.

    Returns:
        The checkpoint folder, or None to start at the beginning; and whether the last step is reached.

    Raises:
        ConfigError: If the folder holds a run that must not be overwritten, or the checkpoint is not of this run.
    """
    resume = config.resume
    if resume is None:
        if not submitted:
            check_not_begun(run_dir)
        check_init_from(config)
        return None, False
    if resume == "auto":
        found = newest_intact(run_dir / "checkpoints")
        if found is None:
            check_init_from(config)
            return None, False
    else:
        found = resolve_checkpoint(resume, "resume")
        if run_dir.resolve() not in found.parents and not submitted:
            check_not_begun(run_dir, f"resume={resume} is of another run, and ")
        verify_checkpoint(found)
    check_resume(config, found)
    return str(found), is_finished(config, run_dir, found)


def check_given_checkpoints(config: RunConfig, run_dir: Path) -> None:
    """Raises ConfigError if `resume` or `init_from` would stop the start of this run. Writes nothing."""
    if config.resume is not None:
        find_checkpoint(config, run_dir)
    else:
        check_init_from(config)


def check_not_begun(run_dir: Path, intro: str = "") -> None:
    """Raises ConfigError if a training has begun in the folder. One that failed before its first step has not."""
    metrics = run_dir / "metrics.jsonl"
    if newest_checkpoint(run_dir) or (metrics.exists() and metrics.stat().st_size > 0):
        remedy = "resume=auto continues it, another name or run_dir keeps both"
        raise ConfigError(f"{intro}run_dir={run_dir} holds a run already; {remedy}")


def check_init_from(config: RunConfig) -> None:
    """Raises ConfigError if `init_from` names no checkpoint that fits. A run that continues does not need it."""
    if config.init_from is not None:
        from txl.checkpoint.init_from import check_init_from_source  # imports torch

        check_init_from_source(config)


def check_resume(config: RunConfig, checkpoint: Path) -> None:
    """Raises ConfigError unless the checkpoint's run computes the same mathematics."""
    if not (checkpoint / "state.json").exists():
        raise ConfigError(f"resume={config.resume} holds weights alone, no training state to continue from")
    saved = read_document(checkpoint, "run.json")
    try:
        differences = resume_differences(saved, to_dict(config))
    except (LookupError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: run.json is no configuration of a run") from None
    if differences:
        raise ConfigError(
            f"resume={config.resume}: {'; '.join(differences)}: a resumed run may not change the mathematics; "
            "set it back, or start a new run (another run_dir or name)"
        )


def is_finished(config: RunConfig, run_dir: Path, checkpoint: Path) -> bool:
    """Whether the checkpoint is at the run's last step, and summary.json holds the results that are asked for.

    The summary of a run that was shorter, or made other evaluations at its end, is not the one that is asked for.
    """
    step, summary = read_document(checkpoint, "state.json").get("step"), read_json(run_dir / "summary.json")
    if not isinstance(step, int) or step < config.train.max_step or not isinstance(summary, dict):
        return False
    asked, made = final_evaluations(config), summary.get("final_evaluations")
    if not isinstance(made, dict):  # of an older version, which noted no options
        made = {name: asked[name] for name in asked if name == "test" or name in summary}
    return summary.get("steps") == step and asked.items() <= made.items()


def finished_message(config: RunConfig, run_dir: Path | str) -> str:
    """What a start of a finished run says: the options that make it longer."""
    longer = f"train.max_step={2 * config.train.max_step}"
    if config.scheduler.name.has_end:  # the learning rate's curve stays where it ended
        longer += f" scheduler.max_step={config.curve_steps}"
    return f"{run_dir} is finished: nothing to do (to train longer: resume=auto {longer})"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint by name. It is not read, which could take long; ranks verify what they load."""
    return next(iter(step_folders(run_dir / "checkpoints")), None)
