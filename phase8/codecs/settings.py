"""What every stage's settings have, and what they answer about their codec.

A codec's folder has a `settings.py` with a subclass of `StageSettings`. Whoever chooses, retries or groups asks it:
allocation for candidates and rates, retries for richer settings, the encoder for the settings that the file keeps. So
nobody else has to know the stages by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from phase8.checks import require
from phase8.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every matrix of a group, by name."""


def check_limit(settings: Any, prefix: str) -> None:
    """Checks `budget_bytes` and `target_ratio` of a stage, or of the run (prefix "")."""
    budget, ratio = settings.budget_bytes, settings.target_ratio
    require(
        budget is None or ratio is None,
        f"{prefix}budget_bytes and {prefix}target_ratio are both set",
        where=f"{prefix}budget_bytes",
        fix="give one of the two, and null for the other",
    )
    require(
        budget is None or budget >= 1,
        f"{prefix}budget_bytes is {budget}, needs at least 1",
        where=f"{prefix}budget_bytes",
        fix=f"{prefix}budget_bytes=400_000, for example",
    )
    require(
        ratio is None or 1 < ratio < float("inf"),
        f"{prefix}target_ratio is {ratio}, needs a number above 1",
        where=f"{prefix}target_ratio",
        fix=f"{prefix}target_ratio=12, for example",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """Settings of a stage's codec. A subclass adds its own, checks them in `__post_init__`, and answers what follows;
    the methods that return nothing here may stay as they are."""

    enabled: bool = True
    budget_bytes: int | None = None
    """Most bytes of this stage's artifact; each tensor then gets settings of its own, chosen by measured distortion."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""

    train_codes: bool = False
    """Trains the stage as a whole within its budget, its codes among what is trained (`phase8.codecs.rechosen`); the
    gradients of `training` take the place of those of `optimizer`."""

    VARIED: ClassVar[tuple[str, ...]] = ()
    """The settings that an allocation chooses."""
    GRID: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Their candidate values, in that order; rows that the checks refuse with the other settings are left out."""
    SHARES: ClassVar[bool] = False
    """Whether the matrices of a group share streams (a codebook); else each is encoded on its own."""
    SAMPLED_WEIGHTS: ClassVar[int] = 1 << 14
    """Most weights of a tensor on which a candidate is measured."""
    SAMPLED_ROWS: ClassVar[int] = 1
    """Consecutive rows that the sample takes at a time."""

    @property
    def trained(self) -> bool:
        """Whether the whole stage is trained within its byte budget (`phase8.train.whole`), and needs one."""
        return self.train_codes

    def bits_per_weight(self) -> float:
        """Packed bits per weight, without what is stored once per matrix or group, and without padding."""
        raise NotImplementedError

    def stored(self, shapes: Shapes) -> dict[str, Any]:
        """The settings that the file keeps of a group of these shapes: what `decode.layout` reads."""
        raise NotImplementedError

    def alternatives(self) -> list[Self]:
        """Settings for an allocation to choose from, the cheapest first; these among them."""
        found = []
        for row in self.GRID:
            try:
                found.append(replace(self, **dict(zip(self.VARIED, row, strict=True))))
            except ConfigError:
                continue
        return sorted(found if self in found else [*found, self], key=lambda candidate: candidate.bits_per_weight())

    def richer(self, severe: bool) -> Iterator[dict[str, Any]]:
        """Ways to spend more bits per weight, the gentlest first: new values by name. A severe loss starts with a
        larger step. Values that the checks refuse may be among them."""
        yield from ()

    def pool_of(self, name: str, kind: str) -> str:
        """Matrices with the same answer form a group and share what the codec shares; `phase8.codecs.pools`."""
        return "model"

    def check_budget(self, limit: str) -> None:
        """Raises `ConfigError` where bytes cannot be allocated with these settings; `limit` names the one that asks."""
