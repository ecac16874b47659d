"""Which matrices are encoded together, and which are not encoded at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from phase8.codecs.settings import StageSettings


def kind_of(name: str) -> str:
    """The sort of a tensor, from its name: `model.layers.0.self_attn.q_proj.weight` -> `q_proj`."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]


def pools(names: Iterable[str], settings: StageSettings) -> list[list[str]]:
    """Groups the matrices of a stage: those of one group are encoded together and share what the codec shares."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(settings.pool_of(name, kind_of(name)), []).append(name)
    return list(found.values())


def is_protected(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor stays in 16 bits: its name matches one of the patterns (as in file globs)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
