"""Which model is compressed."""

from __future__ import annotations

from dataclasses import dataclass

from phase8.checks import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model to compress."""

    path: str = "embedded:reference"
    """`embedded:reference`, a directory (Hugging Face or Phase 7 hand-over), or a hub id."""
    experts: str | None = None
    """An expert file elsewhere than beside the model."""

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path is empty", where="model", fix="name a directory or embedded:reference")
