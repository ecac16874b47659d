"""The hyper codec's decoder: blocks of weights as points of a trajectory; `phase8.codecs.hyper` has the whole story.

Settings of the series: `trajectory` (`polynomial`, `fourier`), `degree`, `block_size` N (0: the whole tensor),
`coefficient_bits` b, `exponent`. Streams of a tensor of B blocks: `scale` [1] float16, `coefficients` [B D], offset by
top = 2^(b-1) - 1.

    w_j = ((0 + q_0 row_0[j]) + q_1 row_1[j] + ...) * (scale * 2^exponent)

With one more setting, `axis` (`depth`), matrices of one kind form a *stack* over the L layers (`stacks`), and the rows
are over L points. The plane of coefficients t, of as many values as a matrix has, and its scale are the streams of the
stack's member t; members from T on have none. Member l is

    w = ((0 + q_0 c_0) + q_1 c_1) + ...,    c_t = (scale_t * 2^exponent) * row_t[l]

and tensors without a stack are coded in blocks.

Settings of the winding: `trajectory` (`ergodic`), `dims` K, `grid` U, `classes` M, `winding`, `exponent`. Shared:
`centroid` [K], `side` [1], `shrink` [M], all float16. Streams of a tensor of B blocks: `scale` [1] float16,
`codes` [B], theta = m (U + 1) + i.

    w_k = (scale * 2^exponent) * (centroid_k + offset_k(i) * (side / shrink_m)),    shrink_0 = 1

Settings of the manifold: `trajectory` (`manifold`) and those of `MANIFOLD`, `exponent`. Streams of a tensor: `scale`,
`coefficients` [B (K + 1)], offset by top: K inputs and the amplitude of each block; `manifold` has the formulas.

each operation rounded to float32. The last block's superfluous weights are dropped; where there is but one block, they
are not worked out either, so that a long block over a short tensor takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from phase8.codecs.bounds import whole_numbers
from phase8.codecs.hyper import fourier, manifold, polynomial, winding
from phase8.codecs.hyper.settings import Axis, Trajectory, Winding
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Layout, finite, float16_values, size_of
from phase8.errors import ArtifactError

MAX_EXPONENT = 60
_SERIES = {"degree": (0, 1024), "block_size": (0, 1 << 24), "coefficient_bits": (2, 16)}
_MANIFOLD = {
    "inputs": (1, 32),
    "width": (1, 64),
    "depth": (1, 3),
    "frequency": (1, 65536),
    "network_seed": (0, (1 << 31) - 1),
    "block_size": (1, 4096),
    "coefficient_bits": (2, 16),
}
_WINDING = {"dims": (1, 1024), "grid": (2, 65535), "classes": (0, 15)}
BOUNDS = {
    kind: {**own, "exponent": (-MAX_EXPONENT, MAX_EXPONENT)}
    for kind, own in {
        Trajectory.polynomial: _SERIES,
        Trajectory.fourier: _SERIES,
        Trajectory.manifold: _MANIFOLD,
        Trajectory.ergodic: _WINDING,
    }.items()
}
MAX_SIZE = 1 << 28
"""Most weights of one matrix: a whole-tensor series has a few coefficients at any size, so shapes need a bound."""
MAX_DEPTH = 256
"""Most members of a stack: each is a sum of up to so many planes."""
_WEIGHTS_AT_ONCE = 1 << 18
_OfBlocks = Callable[[str, EncodedTensor, np.float32], np.ndarray]
"""(name, tensor, scale with the group's exponent) -> the weights of all blocks, float32, flat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The checked settings of a group; those of other trajectories stay at 0."""

    trajectory_type: Trajectory
    exponent: int
    """Every scale is a float16 times 2^exponent."""
    axis: Axis = Axis.block
    winding: Winding = Winding.primes
    degree: int = 0
    block_size: int = 0
    coefficient_bits: int = 0
    dims: int = 0
    grid: int = 0
    classes: int = 0
    inputs: int = 0
    width: int = 0
    depth: int = 0
    frequency: int = 0
    network_seed: int = 0


def settings_of(settings: Mapping[str, Any]) -> Settings:
    """Checks the settings of a group.

    Raises:
        ArtifactError: a setting is missing, unknown or out of range.
    """
    try:
        kind = Trajectory(settings.get("trajectory"))
    except ValueError as error:
        raise ArtifactError(
            f"impossible settings: trajectory is {settings.get('trajectory')!r}",
            where="hyper group",
            fix=f"known: {', '.join(each.value for each in Trajectory)}",
        ) from error
    words: dict[str, Any] = {}
    if kind is Trajectory.ergodic:
        words = {"winding": Winding}
    elif kind is not Trajectory.manifold and "axis" in settings:
        words = {"axis": Axis}
    if set(settings) != {"trajectory", *BOUNDS[kind], *words}:
        raise ArtifactError("settings of a hyper group are missing or unknown", where=", ".join(BOUNDS[kind]))
    numbers = whole_numbers(settings, BOUNDS[kind], "hyper group")
    try:
        chosen = {name: kinds(settings[name]) for name, kinds in words.items()}
    except ValueError as error:
        raise ArtifactError(f"impossible settings: {error}", where="hyper group", fix="write the file anew") from error
    found = Settings(trajectory_type=kind, **numbers, **chosen)
    if "axis" in words and found.axis is not Axis.depth:
        raise ArtifactError("impossible settings: the axis is told where it is the usual one", where="hyper group")
    if kind is Trajectory.manifold:
        work = (found.inputs + (found.depth - 1) * found.width) * found.width
        possible = work <= 256 * found.block_size
    elif kind is Trajectory.ergodic or found.axis is Axis.depth or not found.block_size:
        possible = True
    else:
        family = polynomial if kind is Trajectory.polynomial else fourier
        possible = found.degree <= family.max_degree(found.block_size)
    if not possible:
        raise ArtifactError(f"impossible settings {dict(settings)}", where="hyper group", fix="write the file anew")
    return found


def rows(
    trajectory: Trajectory, degree: int, length: int, begin: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """The functions of a series over `length` positions, as many as they can tell apart, at positions `begin` ..
    `end` - 1; float32 [end - begin] each."""
    family = polynomial if trajectory is Trajectory.polynomial else fourier
    return family.rows(min(degree, family.max_degree(length)), length, begin, end)


def terms(trajectory: Trajectory, degree: int, length: int) -> int:
    """How many `rows` there are."""
    if trajectory is Trajectory.polynomial:
        return 1 + min(degree, polynomial.max_degree(length))
    return 1 + 2 * min(degree, fourier.max_degree(length))


def stacks(config: Settings, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[list[str], int]]:
    """Stack and place of every tensor that has partners in other layers; none where the series are not over depth.

    A tensor's layer is the first part of its name, between dots, that is 1 to 9 decimal digits. Tensors of one shape
    whose names are equal but for that part form a stack, in ascending order of the layer. Example:
    `model.layers.3.mlp.up_proj.weight` and `model.layers.10.mlp.up_proj.weight` are places 0 and 1 of one stack.

    Raises:
        ArtifactError: a stack of more than `MAX_DEPTH`.
    """
    if config.axis is Axis.block:
        return {}
    found: dict[Any, list[tuple[int, str]]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        for n, part in enumerate(parts):
            if part.isascii() and part.isdigit() and len(part) <= 9:
                found.setdefault((*parts[:n], None, *parts[n + 1 :], shape), []).append((int(part), name))
                break
    places = {}
    for members in found.values():
        if len(members) > MAX_DEPTH:
            raise ArtifactError(f"a stack of {len(members)} matrices, at most {MAX_DEPTH}", where=members[0][1])
        names = [name for _, name in sorted(members, key=lambda member: member[0])]
        if len(names) > 1:
            places |= {name: (names, place) for place, name in enumerate(names)}
    return places


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    config = settings_of(settings)
    tensors, shared, operations = {}, {}, 0
    winds = config.trajectory_type is Trajectory.ergodic
    sizes = {name: size_of(shape, name) for name, shape in shapes.items()}
    places = stacks(config, shapes)
    for name, size in sizes.items():
        if size > MAX_SIZE:
            raise ArtifactError(f"{shapes[name]} is beyond {MAX_SIZE:,} weights", where=name)
        if winds:
            bits = ((config.classes + 1) * (config.grid + 1) - 1).bit_length()
            own = {"codes": (-(-size // config.dims), bits)}
            operations += 8 * (size + config.dims)
        elif config.trajectory_type is Trajectory.manifold:
            own = {"coefficients": (-(-size // config.block_size) * (config.inputs + 1), config.coefficient_bits)}
            operations += _manifold_operations(config, size)
        elif name in places:
            names, place = places[name]
            operations += 4 * size * terms(config.trajectory_type, config.degree, len(names))
            if place >= terms(config.trajectory_type, config.degree, len(names)):
                tensors[name] = {}
                continue
            own = {"coefficients": (size, config.coefficient_bits)}
        else:
            length = config.block_size or size
            count = -(-size // length) * terms(config.trajectory_type, config.degree, length) if size else 0
            # Two operations a position for each block that uses a row of the family, and what the row itself takes.
            operations += 2 * count * min(length, size)
            row = _ROW_OPERATIONS[config.trajectory_type] * min(length, size)
            operations += row * terms(config.trajectory_type, config.degree, length) if size else 0
            own = {"coefficients": (count, config.coefficient_bits)}
        tensors[name] = {**own, "scale": (1, 16)}
    if winds:
        shared = {"centroid": (config.dims, 16), "side": (1, 16)}
        if config.classes:
            shared["shrink"] = (config.classes, 16)
    return Layout(tensors=tensors, shared=shared, operations=operations)


_ROW_OPERATIONS = {Trajectory.polynomial: 4, Trajectory.fourier: 16}
"""Of a series' row, a position: 2 to 4 ns and 10 to 13 ns were measured, of which an operation is one."""


def _manifold_operations(config: Settings, size: int) -> int:
    """Element operations for one tensor: the network for every block, its tables anew for each run of blocks."""
    used = min(config.block_size, size)
    network = (config.inputs + 2) * config.width + (config.depth - 1) * (config.width + 1) * config.width
    network += (config.width + 1) * used
    blocks = -(-size // config.block_size)
    runs = -(-blocks // max(1, _WEIGHTS_AT_ONCE // max(used, config.width)))
    return 3 * blocks * network + 20 * runs * network


def geometry(group: EncodedGroup, config: Settings) -> tuple[np.ndarray, np.float32, np.ndarray]:
    """Centroid [K], side, shrinks [M] of a winding.

    Raises:
        ArtifactError: one is not finite; a side or shrink is not positive.
    """
    found = {role: finite(float16_values(stream.values), role) for role, stream in group.shared.items()}
    shrink = found.get("shrink", np.zeros(0, dtype=np.float32))
    if not (found["side"] > 0).all() or not (shrink > 0).all():
        raise ArtifactError("a side or shrink of the winding is not positive", where="hyper group")
    return found["centroid"], found["side"][0], shrink


def scale_of(tensor: EncodedTensor, name: str) -> np.float32:
    """A tensor's scale without the group's exponent; raises `ArtifactError` where it is not finite."""
    return finite(float16_values(tensor.streams["scale"].values), name)[0]


def codes_of(tensor: EncodedTensor, name: str, role: str, limit: int) -> np.ndarray:
    """The values of a stream, all below `limit`, or raises `ArtifactError`."""
    values = tensor.streams[role].values
    if values.size and int(values.max()) >= limit:
        raise ArtifactError(f"a code is {int(values.max())}, the settings allow below {limit}", where=name)
    return values


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    config = settings_of(group.settings)
    kinds = {Trajectory.ergodic: _winding, Trajectory.manifold: _manifold}
    of_blocks = kinds.get(config.trajectory_type, _series)(group, config)
    unit, places = np.float32(2.0**config.exponent), stacks(config, group.shapes)
    for name, tensor in group.tensors.items():
        size = math.prod(tensor.shape)
        if not size:
            flat = np.zeros(0, dtype=np.float32)
        elif name in places:
            flat = _member(group, config, *places[name], unit)
        else:
            flat = of_blocks(name, tensor, scale_of(tensor, name) * unit)
        yield name, flat[:size].reshape(tensor.shape)


def _winding(group: EncodedGroup, config: Settings) -> _OfBlocks:
    centroid, side, shrink = geometry(group, config)
    widths = side / np.concatenate([np.ones(1, dtype=np.float32), shrink])
    direction = winding.steps(config.dims, config.grid, config.winding)

    def of_blocks(name: str, tensor: EncodedTensor, scale: np.float32) -> np.ndarray:
        theta_B = codes_of(tensor, name, "codes", (config.classes + 1) * (config.grid + 1))
        used = min(config.dims, math.prod(tensor.shape))
        weights_BK = np.empty((len(theta_B), used), dtype=np.float32)
        at_once = max(1, _WEIGHTS_AT_ONCE // config.dims)
        for begin in range(0, len(theta_B), at_once):
            radial, index = np.divmod(theta_B[begin : begin + at_once].astype(np.uint32), np.uint32(config.grid + 1))
            points = centroid[:used] + winding.offsets(index, direction[:used]) * widths[radial][:, None]
            weights_BK[begin : begin + at_once] = scale * points
        return weights_BK.reshape(-1)

    return of_blocks


def _manifold(group: EncodedGroup, config: Settings) -> _OfBlocks:
    top = (1 << (config.coefficient_bits - 1)) - 1
    first = manifold.places(config.inputs, config.width, config.depth)[-1]

    def of_blocks(name: str, tensor: EncodedTensor, scale: np.float32) -> np.ndarray:
        stored = codes_of(tensor, name, "coefficients", 2 * top + 1).reshape(-1, config.inputs + 1)
        used = min(config.block_size, math.prod(tensor.shape))
        weights_BN = np.empty((len(stored), used), dtype=np.float32)
        at_once = max(1, _WEIGHTS_AT_ONCE // max(used, config.width))
        for begin in range(0, len(stored), at_once):
            q_BK = stored[begin : begin + at_once].astype(np.int32) - top
            x_BK = manifold.turns_of(q_BK[:, :-1], config.frequency, top)
            z_BH = manifold.activations(x_BK, config.network_seed, config.width, config.depth)
            out_BN = manifold.directions(z_BH, config.network_seed, first, config.block_size, used)
            weights_BN[begin : begin + at_once] = out_BN * q_BK[:, -1:].astype(np.float32) * scale
        return weights_BN.reshape(-1)

    return of_blocks


def _series(group: EncodedGroup, config: Settings) -> _OfBlocks:
    kind, degree = config.trajectory_type, config.degree
    top = (1 << (config.coefficient_bits - 1)) - 1

    def of_blocks(name: str, tensor: EncodedTensor, step: np.float32) -> np.ndarray:
        stored = codes_of(tensor, name, "coefficients", 2 * top + 1)
        size = math.prod(tensor.shape)
        length, used = config.block_size or size, min(config.block_size or size, size)
        q_BD = (stored.astype(np.int32) - top).astype(np.float32).reshape(-1, terms(kind, degree, length))
        weights_BN = np.zeros((len(q_BD), used), dtype=np.float32)
        at_once = max(1, _WEIGHTS_AT_ONCE // used)
        for first in range(0, used, _WEIGHTS_AT_ONCE):  # a row of a long block takes more than the block itself
            part = slice(first, min(first + _WEIGHTS_AT_ONCE, used))
            for d, row_N in enumerate(rows(kind, degree, length, part.start, part.stop)):
                for begin in range(0, len(q_BD), at_once):
                    weights_BN[begin : begin + at_once, part] += q_BD[begin : begin + at_once, d, None] * row_N
        weights_BN *= step
        return weights_BN.reshape(-1)

    return of_blocks


@lru_cache(maxsize=8)
def over_depth(kind: Trajectory, degree: int, depth: int) -> np.ndarray:
    """The rows over a stack of so many members, float32 [T, L]. Read-only."""
    basis_TL = np.stack(list(rows(kind, degree, depth)))
    basis_TL.setflags(write=False)
    return basis_TL


def _member(group: EncodedGroup, config: Settings, names: list[str], place: int, unit: np.float32) -> np.ndarray:
    """The weights of one member of a stack, float32, flat."""
    top = (1 << (config.coefficient_bits - 1)) - 1
    basis_TL = over_depth(config.trajectory_type, config.degree, len(names))
    weights_N = np.zeros(math.prod(group.tensors[names[0]].shape), dtype=np.float32)
    for name, row_L in zip(names, basis_TL, strict=False):
        stored = codes_of(group.tensors[name], name, "coefficients", 2 * top + 1)
        factor = scale_of(group.tensors[name], name) * unit * row_L[place]
        for begin in range(0, len(weights_N), _WEIGHTS_AT_ONCE):
            q_N = stored[begin : begin + _WEIGHTS_AT_ONCE].astype(np.int32) - top
            weights_N[begin : begin + _WEIGHTS_AT_ONCE] += q_N.astype(np.float32) * factor
    return weights_N
