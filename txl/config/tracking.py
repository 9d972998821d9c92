"""The options of `tracking=`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class WandbMode(Enum):
    none = "none"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class WandbConfig:
    mode: WandbMode = MISSING
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    tags: list[str] = MISSING
    job_type: str = MISSING
    name: str | None = None  # null: <name>-<run folder>


@dataclass
class TrackingConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    environment: bool = MISSING  # write environment.json (versions, devices, git state)
    dllogger: str | None = None  # file in the run folder: metrics in the original's format, lines of `DLLL {json}`
