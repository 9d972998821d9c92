"""What a diverged training leaves behind, so that `txl replay FOLDER` repeats the step that was not finite.

divergence/step_520/dump.json      the step, the batch's place in the text, the configuration of the replay
divergence/step_520/checkpoint/    the state that training went on from before; its large files are hard links
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from txl.checkpoint.checkpoint_files import link_or_copy, write_checkpoint_file
from txl.checkpoint.find import MANIFEST, read_document
from txl.config.compose import from_dict, to_dict
from txl.config.schema import RunConfig
from txl.config.training import MOST_STEPS, OnDivergence
from txl.errors import ConfigError
from txl.files import make_folder, read_json, write_json
from txl.train.divergence import BatchPlace

DUMP = "dump.json"
CHECKPOINT = "checkpoint"


def write_divergence_dump(
    folder: Path, config: RunConfig, place: BatchPlace, last_step: int, checkpoint: Path | None, changed: dict[str, Any]
) -> None:
    """Write a dump, in place of an earlier one of the same step.

    Args:
        folder: the dump.
        config: the run.
        place: the batch of the first step that was not finite.
        last_step: the step at which this was noticed; the replay ends there at the latest.
        checkpoint: what training went on from; None: from the beginning.
        changed: entries of its state.json that training went on with after a rollback.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    values = to_dict(_replay_config(config, last_step))
    if checkpoint is not None:
        _copy_checkpoint(checkpoint, folder / CHECKPOINT, {"run.json": values}, changed)
    noticed = {"noticed_at_step": last_step, "rollbacks": len(changed.get("rollbacks", []))}
    write_json(folder / DUMP, asdict(place) | noticed | {"config": values}, indent=1)


def read_divergence_dump(folder: Path) -> tuple[BatchPlace, RunConfig]:
    """The batch of a dump, and the configuration that repeats it, in a run folder below the dump.

    Raises ConfigError if the folder holds no dump.
    """
    folder = folder.parent if folder.name == DUMP else folder
    values = read_json(folder / DUMP)
    try:
        place = BatchPlace(*(values[key] for key in ("step", "epoch", "batch", "lr")))
        config = from_dict(values["config"], RunConfig)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{folder} holds no readable {DUMP}; name a folder RUN/divergence/step_N, which a diverged run wrote"
        ) from None
    config.run_dir = str(folder / "replay")
    config.resume = str(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    return place, config


def _replay_config(config: RunConfig, last_step: int) -> RunConfig:
    """The run up to that step: every step is logged, nothing is validated or saved."""
    train = config.train
    return replace(
        config,
        train=replace(
            train, max_step=last_step, log_interval=1, on_divergence=OnDivergence.stop, target_throughput=None,
            target_perplexity=None, time_limit_minutes=None,
        ),
        scheduler=replace(config.scheduler, max_step=config.curve_steps),
        valid=replace(config.valid, enabled=False, interval=MOST_STEPS),
        checkpoint=replace(config.checkpoint, interval=0, minutes=None),
        sample_tokens=0,
    )  # fmt: skip


def _copy_checkpoint(source: Path, target: Path, documents: dict[str, Any], changed: dict[str, Any]) -> None:
    """Copy a checkpoint with other documents, and with changed entries of its state.json."""
    manifest = read_document(source, MANIFEST)
    documents |= {"state.json": read_document(source, "state.json") | changed}
    target.mkdir()
    for name in manifest["files"]:
        if name in documents:
            manifest["files"][name] = write_checkpoint_file(target / name, documents[name])
        else:
            link_or_copy(source / name, target / name)
    write_checkpoint_file(target / MANIFEST, manifest)
