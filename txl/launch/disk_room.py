"""Before the first step: is there room for the checkpoints of a run?"""

import logging
import shutil
from pathlib import Path

from txl.checkpoint.find import step_folders
from txl.config.schema import RunConfig
from txl.errors import ConfigError

log = logging.getLogger(__name__)

MEGABYTE = 1e6


def check_room(config: RunConfig, run_dir: Path, checkpoint_bytes: int) -> None:
    """Warn if the disk will be full before the run has ended.

    Args:
        config: The run.
        run_dir: Its folder, which exists.
        checkpoint_bytes: The size of a checkpoint, estimated.

    Raises:
        ConfigError: If there is no checkpoint yet and no room for a single one.
    """
    free, there = shutil.disk_usage(run_dir).free, len(step_folders(run_dir / "checkpoints"))
    size, left = f"{checkpoint_bytes / MEGABYTE:,.1f} MB", f"{free / MEGABYTE:,.1f} MB"
    if not there and free < checkpoint_bytes:
        raise ConfigError(
            f"run_dir={run_dir}: the disk has {left} left, and a checkpoint takes about {size}; free some room, or "
            "choose another folder (run_dir= or runs=)"
        )
    keep = 1 if config.checkpoint.save_all else config.checkpoint.keep
    most = keep + config.valid.enabled + 1  # the best one, and the one that is being written
    if free < (most - there) * checkpoint_bytes:
        fewer = " or set checkpoint.keep=1," if keep > 1 else ""
        log.warning(
            "run_dir=%s: the disk has %s left, and %d checkpoints of about %s will be there at once, %d of them now; "
            "free some room,%s before it is full",
            run_dir,
            left,
            most,
            size,
            there,
            fewer,
        )
