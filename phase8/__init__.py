"""Phase 8: compress a small language model in three gated stages, and measure what is left.

    from phase8 import CompressionConfig, FinalCompressionPhase
    result = await FinalCompressionPhase(CompressionConfig()).run("embedded:reference")

Names are imported when they are asked for, so that `phase8.runtime` loads where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phase8.integration import teach_transformers

if TYPE_CHECKING:
    from phase8.api import CompressionOrchestrator, FinalCompressionPhase
    from phase8.config import CompressionConfig
    from phase8.errors import Phase8Error

__all__ = ["CompressionConfig", "CompressionOrchestrator", "FinalCompressionPhase", "Phase8Error"]

_HOMES = {
    "CompressionConfig": "phase8.config",
    "CompressionOrchestrator": "phase8.api",
    "FinalCompressionPhase": "phase8.api",
    "Phase8Error": "phase8.errors",
}

teach_transformers()  # transformers opens artifacts from now on; it costs nothing until transformers is imported


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
