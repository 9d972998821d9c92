"""The options of `tracking=`, and the sinks that they choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero


class SinkName(Enum):
    """Where metrics go besides the console and metrics.jsonl. txl/tracking/<name>_sink.py implements each."""

    dllogger = "dllogger"
    wandb = "wandb"
    tensorboard = "tensorboard"
    notify = "notify"


# The package that a sink needs, as pip names it.
PACKAGES = {SinkName.wandb: "wandb", SinkName.tensorboard: "tensorboard"}


class WandbMode(Enum):
    """The modes of Weights & Biases; none: do not use it."""

    none = "none"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = MISSING  # none: do not use it
    project: str = MISSING  # project of wandb
    entity: str | None = None  # user or team of wandb; null: your own
    group: str | None = None  # runs of one group are shown together; null: of a sweep, its name and what is swept
    tags: list[str] = MISSING  # tags of the run
    job_type: str = MISSING  # kind of job that wandb shows
    name: str | None = None  # null: <name>-<run folder>; of a point of a sweep: what differs from the other points
    alerts: bool = False  # wandb sends a message when a run ends, fails, or is requeued


@dataclass
class TrackingConfig:
    """Records of a run that can be switched on and off."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    environment: bool = MISSING  # write environment.json (versions, devices, git state)
    dllogger: str | None = None  # file in the run folder: metrics in the original's format, lines of `DLLL {json}`
    # A log file that is larger is renamed to <name>.1, in place of the one before: two of them at most.
    rotate_mb: int = above_zero(64, most=1_000_000)
    tensorboard: bool = False  # write TensorBoard's event files to tensorboard/ in the run folder
    # An address that gets a JSON record (POST) when a run ends, fails, or is requeued; or the name of an environment
    # variable that holds it, for an address that is secret.
    notify: str | None = None


def enabled_sinks(options: TrackingConfig) -> list[SinkName]:
    """The sinks that the options choose."""
    enabled = {
        SinkName.dllogger: options.dllogger is not None,
        SinkName.wandb: options.wandb.mode is not WandbMode.none,
        SinkName.tensorboard: options.tensorboard,
        SinkName.notify: options.notify is not None,
    }
    return [name for name in SinkName if enabled[name]]
