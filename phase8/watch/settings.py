"""Where a run is logged beside its own directory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerConfig:
    """Weights & Biases."""

    mode: WandbMode = WandbMode.offline
    project: str = "phase8"
    group: str | None = None
    """Runs of one sweep share a group."""
