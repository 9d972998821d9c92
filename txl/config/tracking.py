"""The options of `tracking=`: where metrics go besides the console and the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class WandbMode(Enum):
    """The modes of Weights & Biases; none: do not use it."""

    none = "none"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = MISSING
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    tags: list[str] = MISSING
    job_type: str = MISSING
    name: str | None = None  # null: <name>-<run folder>


@dataclass
class TrackingConfig:
    """Records of a run that can be switched on and off."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    environment: bool = MISSING  # write environment.json (versions, devices, git state)
    dllogger: str | None = None  # file in the run folder: metrics in the original's format, lines of `DLLL {json}`
