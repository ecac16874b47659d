"""The settings of the SeedLM stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from phase8.checks import require
from phase8.codecs.settings import Shapes, StageSettings, check_limit

STORED = ("block_size", "latent_dim", "bits", "seed_bits", "exponent_bits")
"""The settings that the file keeps."""


class SeedSearch(Enum):
    fast = "fast"
    exhaustive = "exhaustive"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedLMConfig(StageSettings):
    """SeedLM (arXiv 2410.10714): a block of weights is a seeded pseudo-random basis times a few small coefficients."""

    block_size: int = 8
    """C: consecutive weights, in row-major order, that share a seed."""
    latent_dim: int = 3
    """P: coefficients per block."""
    bits: int = 4
    """Width of one coefficient: two's complement from 3 bits on; 1 bit is -1/+1 and 2 bits are -3/-1/+1/+3."""
    seed_bits: int = 16
    """K: width of the shift register; 2**K - 1 seeds are searched."""
    exponent_bits: int = 4
    """Width of the power of two that a block's coefficients share; the tensor has a scale beside it."""
    search: SeedSearch = SeedSearch.fast
    """exhaustive: look at every seed for every block. fast: at the seeds whose bases lie near the block's direction."""
    candidates: int = 0
    """How many of the best-looking seeds of a block are compared exactly, with quantised coefficients; 0: as many as
    the width of the coefficients asks for (`phase8.codecs.seedlm.seed_search`)."""
    weighted: bool = False
    """Weighs squared errors by the diagonal of the layer's Hessian and by token frequency, from calibration text."""

    VARIED: ClassVar = ("block_size", "latent_dim", "bits")
    # 1.4 to 5.3 bits per weight with 16-bit seeds: on the lower hull of error against entropy-coded bits, or within
    # 0.2 dB of it (65,536 Gaussian weights, 83 settings)
    GRID: ClassVar = (
        (16, 3, 1), (14, 4, 1), (12, 4, 1), (10, 4, 1), (10, 4, 2), (8, 4, 1), (7, 4, 1), (8, 4, 3), (8, 4, 4),
        (6, 3, 4),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_limit(self, "seedlm.")
        fix = "the paper's settings are block_size=8 latent_dim=3 bits=4 seed_bits=16 exponent_bits=4"

        def within(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            what = f"seedlm.{name} is {value!r}, needs a whole number from {low} to {high}"
            require(ok, what, where="seedlm", fix=fix)

        within("block_size", 1, 4096)
        within("latent_dim", 1, 64)
        within("bits", 1, 8)
        within("seed_bits", 4, 20)
        within("exponent_bits", 2, 8)
        within("candidates", 0, 4096)
        require(
            self.latent_dim <= self.block_size,
            f"seedlm.latent_dim is {self.latent_dim}, more than seedlm.block_size ({self.block_size})",
            where="seedlm",
            fix="lower seedlm.latent_dim or raise seedlm.block_size",
        )
        require(
            self.latent_dim**2 << self.seed_bits <= 1 << 26,
            f"seedlm.latent_dim={self.latent_dim} with seed_bits={self.seed_bits} needs more than 256 MiB of tables",
            where="seedlm",
            fix="lower seedlm.latent_dim or seedlm.seed_bits so that latent_dim**2 * 2**seed_bits is at most 2**26",
        )

    def bits_per_weight(self) -> float:
        """See `StageSettings`."""
        return (self.seed_bits + self.exponent_bits + self.bits * self.latent_dim) / self.block_size

    def stored(self, shapes: Shapes) -> dict[str, Any]:
        """See `StageSettings`."""
        return {name: getattr(self, name) for name in STORED}

    def richer(self, severe: bool) -> Iterator[dict[str, Any]]:
        """See `StageSettings`."""
        if severe and self.block_size // 2 >= self.latent_dim:
            yield {"block_size": self.block_size // 2}
        yield {"bits": self.bits + 1}
        yield {"latent_dim": self.latent_dim + 1}
