"""Which checkpoint a run continues from, and whether it may."""

import json
from pathlib import Path

from txl.config.compose import to_dict
from txl.config.resume_changes import resume_differences
from txl.config.schema import RunConfig
from txl.errors import ConfigError


def find_checkpoint(config: RunConfig, run_dir: Path, ours: bool = False) -> tuple[str | None, bool]:
    """Where to continue (None: at the beginning), and whether the run is finished already."""
    resume, begun = config.resume, (run_dir / "config.yaml").exists() and not ours
    taken = f"run_dir={run_dir} holds a run already; resume=auto continues it, another name or run_dir keeps both"
    if resume is None:
        if begun:
            raise ConfigError(taken)
        check_source(config)
        return None, False
    from txl.checkpoint import store  # imports torch, which a fresh run's mistakes need not wait for
    from txl.system.world import World

    if resume == "auto":
        found = store.Checkpoints(run_dir / "checkpoints", World()).newest()
        if found is None:
            check_source(config)
            return None, False
    else:
        found = store.resolve(resume, "resume")
        if begun and run_dir.resolve() not in found.parents:
            raise ConfigError(f"resume={resume} is of another run, and {taken}")
        store.verify(found)
    check_resume(config, found)
    return str(found), is_finished(config, run_dir, found)


def check_source(config: RunConfig) -> None:
    """The checkpoint that a run begins from; one that continues has no more need of it."""
    if config.init_from is not None:
        from txl.checkpoint import init_from as fine_tuning  # imports torch

        fine_tuning.check_source(config)


def check_resume(config: RunConfig, checkpoint: Path) -> None:
    """The same mathematics, else ConfigError."""
    if not (checkpoint / "state.json").exists():
        raise ConfigError(f"resume={config.resume} holds weights alone, no state of a training that could go on")
    differences = resume_differences(json.loads((checkpoint / "run.json").read_text()), to_dict(config))
    if differences:
        raise ConfigError(
            f"resume={config.resume}: {'; '.join(differences)}: a resumed run may not change the mathematics; "
            "set it back, or start a new run (another run_dir or name)"
        )


def is_finished(config: RunConfig, run_dir: Path, checkpoint: Path) -> bool:
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    return step >= config.train.max_step and (run_dir / "summary.json").exists()


def newest_checkpoint(run_dir: Path) -> Path | None:
    """By name, without reading it: an answer without torch. The ranks verify what they load."""
    found = [path.parent for path in run_dir.glob("checkpoints/step_*/manifest.json")]
    return max(found, key=lambda path: int(path.name.removeprefix("step_")), default=None)
