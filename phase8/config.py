"""Every setting of a run, as typed dataclasses, checked once at the entry.

`run.py` composes `conf/` with Hydra and hands the result to `RunConfig.from_dict`; below that nobody sees a
`DictConfig`. Unknown names, wrong types and impossible combinations raise `ConfigError` before any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from phase8.errors import ConfigError


def require(condition: bool, what: str, *, where: str, fix: str) -> None:
    """Raises `ConfigError` unless `condition`."""
    if not condition:
        raise ConfigError(what, where=where, fix=fix)


class SeedSearch(Enum):
    fast = "fast"
    exhaustive = "exhaustive"


class Trajectory(Enum):
    polynomial = "polynomial"
    fourier = "fourier"
    ergodic = "ergodic"


class Sharing(Enum):
    """Which matrices share a codebook."""

    tensor = "tensor"
    kind = "kind"
    model = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedLMConfig:
    """SeedLM (arXiv 2410.10714): a block of weights is a seeded pseudo-random basis times a few small coefficients."""

    enabled: bool = True
    block_size: int = 8
    """C: consecutive weights of a row that share a seed."""
    latent_dim: int = 3
    """P: coefficients per block."""
    bits: int = 4
    """Width of one coefficient, two's complement."""
    seed_bits: int = 16
    """K: width of the shift register; 2**K - 1 seeds are searched."""
    exponent_bits: int = 4
    search: SeedSearch = SeedSearch.fast
    candidates: int = 64
    """fast search: how many of the best-looking seeds are re-ranked exactly with quantised coefficients."""

    def __post_init__(self) -> None:
        fix = "the paper's settings are block_size=8 latent_dim=3 bits=4 seed_bits=16"
        require(self.block_size >= 1, f"seedlm.block_size is {self.block_size}, needs at least 1", where="seedlm", fix=fix)
        require(
            1 <= self.latent_dim <= self.block_size,
            f"seedlm.latent_dim is {self.latent_dim}, needs 1 to block_size ({self.block_size})",
            where="seedlm",
            fix="lower seedlm.latent_dim or raise seedlm.block_size",
        )
        require(1 <= self.bits <= 8, f"seedlm.bits is {self.bits}, needs 1 to 8", where="seedlm", fix=fix)


@dataclass(frozen=True, kw_only=True, slots=True)
class VPTQConfig:
    """VPTQ (arXiv 2409.17066): indices into learned codebooks of weight vectors, fitted under the layer's Hessian."""

    enabled: bool = True
    vector_dim: int = 8
    """v: consecutive output rows of one input column that form a vector."""
    codebook_size: int = 256
    """Entries of each codebook."""
    num_codebooks: int = 2
    """Residual codebooks: each codes what the ones before left over."""
    share: Sharing = Sharing.kind
    """Which matrices share the codebooks."""
    codebook_bits: int = 16
    """16: float16 entries; 8: 8-bit entries with one float16 scale per codebook."""
    hessian_damping: float = 0.01
    second_order: bool = True
    """The column loop that pushes each column's error into the columns still to be coded."""
    kmeans_iterations: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperConfig:
    """Hyper-Compression (arXiv 2409.00592) and its relatives: weights as values of a function along a trajectory."""

    enabled: bool = True
    trajectory_type: Trajectory = Trajectory.ergodic
    degree: int = 5
    """polynomial: its degree. fourier: number of frequencies."""
    block_size: int = 0
    """polynomial, fourier: weights per trajectory; 0 takes the whole flattened tensor, as printed."""
    coefficient_bits: int = 8
    dims: int = 8
    """ergodic: K, weights per code."""
    grid: int = 256
    """ergodic: U, points of the winding."""
    classes: int = 1
    """ergodic: M, radial classes outside the square (0: none)."""
