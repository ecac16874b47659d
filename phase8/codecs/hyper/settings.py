"""The settings of the Hyper-Compression stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from phase8.checks import require
from phase8.codecs.settings import Shapes, StageSettings, check_limit

MANIFOLD = ("inputs", "width", "depth", "frequency", "network_seed", "block_size", "coefficient_bits")


class Trajectory(Enum):
    polynomial = "polynomial"
    fourier = "fourier"
    ergodic = "ergodic"
    manifold = "manifold"
    lattice = "lattice"


class Axis(Enum):
    """What a polynomial or Fourier series runs along."""

    block = "block"
    """Consecutive weights of a matrix."""
    depth = "depth"
    """The layers: one weight of all matrices of the same kind and shape."""


class Winding(Enum):
    """Direction of the ergodic winding; see `phase8.codecs.hyper.ergodic`."""

    power = "power"
    reciprocal = "reciprocal"
    primes = "primes"


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperConfig(StageSettings):
    """Hyper-Compression (arXiv 2409.00592) and its relatives: weights as values of a function along a trajectory.

    Measured on Gaussian weights (`experiments/results/trajectories.md`), the ergodic winding is the best of the
    four at about 0.13 bit per weight and at 1 bit. The defaults are for the former: 14 bits for 112 weights, relative
    squared error 0.868 (`dims=128 grid=65535`: 0.865 in several times the time). For 1 bit take `dims=12 grid=4095`
    (0.327) or, ten times slower, `dims=16 grid=65535` (0.314). The published codec is
    `dims=2 grid=1600 classes=3 winding=power side=0.1`.
    """

    trajectory_type: Trajectory = Trajectory.ergodic
    degree: int = 5
    """polynomial: its degree. fourier: number of frequencies. Short tensors use as many as they can hold."""
    axis: Axis = Axis.block
    """polynomial, fourier: along the weights of a block, or over the layers. Matrices without a partner in another
    layer (the embedding) are coded in blocks either way."""
    block_size: int = 0
    """polynomial, fourier: consecutive weights per trajectory; 0 takes the whole flattened tensor, as printed.
    manifold: consecutive weights per block, at least 1."""
    coefficient_bits: int = 8
    """polynomial, fourier, manifold: width of one coefficient, sign included."""
    inputs: int = 2
    """manifold: K, coefficients that go into the network; an amplitude stands beside them."""
    width: int = 32
    """manifold: units of a hidden layer."""
    depth: int = 2
    """manifold: hidden layers."""
    frequency: int = 128
    """manifold: the range of an input in sixteenths of a turn to either side; higher folds the manifold more often."""
    network_seed: int = 0
    """manifold: the network is this number."""
    dims: int = 112
    """ergodic: K, consecutive weights per code."""
    grid: int = 16383
    """ergodic: U, points of the winding beside the centroid; 2**n - 1 fills n bits."""
    classes: int = 0
    """ergodic: M, radial classes outside the cube (0: none)."""
    winding: Winding = Winding.primes
    """ergodic: direction of the line."""
    side: float = 0.0
    """ergodic: l, side of the cube in units of the weights; 0 chooses it from the data, with a scale per tensor."""

    kept_width: float | None = None
    """lattice: share of the residual stream's channels that are kept, the strongest after a rotation; None: as many as
    leave each weight `kept_bits`."""
    kept_units: float | None = None
    """lattice: share of each feed-forward block's units that are kept; None likewise."""
    kept_bits: float = 2.5
    """lattice: what the choice of width and units aims at (`phase8.train.shape`)."""
    kept_heads: float = 1.0
    """lattice: share of each attention's key-value heads, with their queries, that are kept."""
    kept_head_size: float | None = None
    """lattice: share of each kept head's channels that are kept; None: half of them where that leaves 32 or more."""
    shared_layers: int = 1
    """lattice: this many layers in a row share their integers, each with steps of its own; 1 shares nothing."""
    start_step: float = 0.6
    """lattice: distance of its points before training, in standard deviations of the matrix."""

    VARIED: ClassVar = ("dims", "grid")
    # 0.06 to 4 bits per weight
    GRID: ClassVar = (
        (128, 255), (112, 16383), (48, 4095), (24, 4095), (16, 4095), (12, 4095), (8, 4095), (4, 255), (3, 511),
        (2, 255),
    )  # fmt: skip
    SHARES: ClassVar = True
    SAMPLED_WEIGHTS: ClassVar = 1 << 16

    def __post_init__(self) -> None:
        def bounds(name: str, low: int, high: int, fix: str) -> None:
            value = getattr(self, name)
            require(
                low <= value <= high, f"hyper.{name} is {value}, needs {low} to {high}", where=f"hyper.{name}", fix=fix
            )

        check_limit(self, "hyper.")
        bounds("degree", 0, 1024, "the printed value is hyper.degree=5")
        bounds("block_size", 0, 1 << 24, "0 takes the whole tensor, 64 is a short block")
        bounds("coefficient_bits", 2, 16, "the printed value is hyper.coefficient_bits=8")
        bounds("dims", 1, 1024, "the published value is hyper.dims=2, the default 112")
        bounds("grid", 2, 65535, "the published value is hyper.grid=1600, the default 16383")
        bounds("classes", 0, 15, "the published value is at most 3, the default 0")
        require(
            self.side == 0.0 or 1e-4 <= self.side <= 1e4,
            f"hyper.side is {self.side}, needs 0 or 0.0001 to 10000",
            where="hyper.side",
            fix="the published value is hyper.side=0.1; 0 chooses it from the data",
        )
        for name in ("kept_width", "kept_units", "kept_head_size"):
            if getattr(self, name) is not None:
                bounds(name, 0.01, 1.0, f"hyper.{name}=null chooses it")
        bounds("kept_bits", 0.1, 16.0, "the default is 2.5")
        bounds("kept_heads", 0.01, 1.0, "the default is 1")
        bounds("shared_layers", 1, 1024, "the default is 1, two layers share with 2")
        bounds("start_step", 0.01, 10.0, "the default is 0.6")
        bounds("inputs", 1, 32, "the default is 2")
        bounds("width", 1, 64, "the default is 32")
        bounds("depth", 1, 3, "the default is 2")
        bounds("frequency", 1, 65536, "the default is 128, eight turns to either side")
        bounds("network_seed", 0, (1 << 31) - 1, "the default is 0")
        require(
            self.axis is Axis.block or self.trajectory_type in (Trajectory.polynomial, Trajectory.fourier),
            f"hyper.axis is depth, but only a polynomial or fourier series runs over the layers, and "
            f"hyper.trajectory_type is {self.trajectory_type.value}",
            where="hyper.axis",
            fix="set hyper.axis=block, or hyper.trajectory_type=polynomial",
        )
        if self.trajectory_type is Trajectory.manifold:
            self._check_manifold()
        # Over the layers the degree is that of the stacks; the few matrices in blocks use as much of it as they hold.
        elif (
            self.block_size
            and self.trajectory_type in (Trajectory.polynomial, Trajectory.fourier)
            and self.axis is Axis.block
        ):
            polynomial = self.trajectory_type is Trajectory.polynomial
            highest = (
                min(self.block_size - 1, 4 * math.isqrt(self.block_size)) if polynomial else (self.block_size - 1) // 2
            )
            require(
                self.degree <= highest,
                f"hyper.degree is {self.degree}, but a {self.trajectory_type.value} over hyper.block_size="
                f"{self.block_size} weights holds at most {highest}",
                where="hyper.degree",
                fix=f"set hyper.degree={highest} or less, or a larger hyper.block_size",
            )

    def _check_manifold(self) -> None:
        require(
            1 <= self.block_size <= 4096,
            f"hyper.block_size is {self.block_size}, a manifold's block needs 1 to 4096 weights",
            where="hyper.block_size",
            fix="set hyper.block_size=128",
        )
        work = (self.inputs + (self.depth - 1) * self.width) * self.width
        require(
            work <= 256 * self.block_size,
            f"the network takes {work} products for a block of {self.block_size} weights, needs at most 256 for each",
            where="hyper.width",
            fix="lower hyper.width or hyper.depth, or raise hyper.block_size",
        )

    @property
    def trained(self) -> bool:
        """See `StageSettings`."""
        return self.train_codes or self.trajectory_type is Trajectory.lattice

    @property
    def code_bits(self) -> int:
        """ergodic: width of one code."""
        return ((self.classes + 1) * (self.grid + 1) - 1).bit_length()

    def bits_per_weight(self) -> float:
        """See `StageSettings`; of the ergodic trajectory, the only one that bytes are allocated for."""
        return self.code_bits / self.dims

    def stored(self, shapes: Shapes, *, exponent: int = 0) -> dict[str, Any]:
        """See `StageSettings`.

        Args:
            exponent: of two, which every scale of the group is multiplied by.
        """
        kind = self.trajectory_type
        stored: dict[str, Any] = {"trajectory": kind.value}
        if kind is Trajectory.ergodic:
            stored |= {name: getattr(self, name) for name in ("dims", "grid", "classes")}
            return stored | {"winding": self.winding.value, "exponent": exponent}
        if kind is Trajectory.manifold:
            return stored | {"exponent": exponent} | {name: getattr(self, name) for name in MANIFOLD}
        stored |= {name: getattr(self, name) for name in ("degree", "block_size", "coefficient_bits")}
        if self.axis is Axis.depth:
            stored["axis"] = self.axis.value
        return stored | {"exponent": exponent}

    def richer(self, severe: bool) -> Iterator[dict[str, Any]]:
        """See `StageSettings`."""
        if self.trained:
            return  # its bytes are its budget; a retry trains longer
        if self.trajectory_type is Trajectory.ergodic:
            if self.dims > 1:
                yield {"dims": self.dims // 2 if severe else max(1, 3 * self.dims // 4)}
            yield {"grid": 2 * self.grid + 1}
        elif self.trajectory_type is Trajectory.manifold:
            yield {"block_size": self.block_size // 2 if severe else max(1, 3 * self.block_size // 4)}
        else:
            if self.block_size == 0:
                yield {"block_size": 256}
            elif severe:
                yield {"block_size": self.block_size // 2}
            yield {"degree": 2 * self.degree + 1}
            yield {"coefficient_bits": self.coefficient_bits + 2}

    def check_budget(self, limit: str) -> None:
        """See `StageSettings`."""
        require(
            self.trained or self.trajectory_type is Trajectory.ergodic,
            f"{limit} is set, but only the ergodic trajectory and the lattice keep to a number of bytes, and "
            f"hyper.trajectory_type is {self.trajectory_type.value}",
            where="hyper.trajectory_type",
            fix="take hyper.trajectory_type=lattice, or limit the other stages one by one",
        )
