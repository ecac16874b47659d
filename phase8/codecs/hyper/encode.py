"""The third stage's codec: streams for the trajectories of `polynomial`, `fourier`, `ergodic` and `manifold`.

Every matrix is flattened row by row and cut into blocks of N consecutive weights, the last one filled up with zeros.

    polynomial, fourier   w_block = step * sum_d q_d row_d     streams: coefficients (q), scale (step)
    ergodic               w_block = scale * point(theta)       streams: codes (theta), scale;
                                                               shared: centroid, side, shrink
    manifold              w_block = scale * a * network(q)     streams: coefficients (q and a), scale

Over depth (`axis=depth`) a polynomial or Fourier series runs over the layers instead: the L matrices of one kind and
shape are a stack [L, O, I], and each of the O I positions has a function of the layer's place 0 .. L - 1,

    w_l = sum_t step_t q_t row_t[l]                            streams of member t: coefficients (q_t), scale (step_t)

so that T planes stand for L matrices; T = L reproduces them to the coefficients' precision (polynomials up to 17
layers, Fourier series of an odd number). Member t of the stack carries plane t, and the members from T on nothing. A
matrix that is alone of its kind, such as the embedding, is coded in blocks beside them.

`step` and `scale` are one float16 per tensor times 2^exponent, one exponent per group, so that weights of any magnitude
keep the float16's full precision. Importance is not used: the winding's points have no axis along which to trade error.

Example: the weights [3, 2, 1, 2] as one Fourier block of degree 1 with 8 bits: coefficients 2, 0.7071, 0 and step
2 / 127 give q = 127, 45, 0, hence [3.002, 2, 0.998, 2]. Over depth, three layers with the weights 1, 2, 3 at one
position and degree 1: the plane of 2s and the plane of 0.8165s, two numbers for three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs import decoders
from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Importance,
    Progress,
    Stream,
    Trainable,
    float16_bits,
    float16_values,
    round_through,
)
from phase8.codecs.hyper import ergodic, manifold_search
from phase8.codecs.hyper.decode import (
    MAX_EXPONENT,
    MAX_SIZE,
    config_of,
    geometry,
    over_depth,
    rows,
    scale_of,
    stacks,
)
from phase8.codecs.hyper.settings import Axis, HyperConfig, Trajectory
from phase8.codecs.matrices import Matrix, extremes, in_parts, matrices, size_of
from phase8.errors import ArtifactError, CodecError
from phase8.lossless.bitpack import narrowest

_LARGEST_HALF = 65504.0
_LEAST_WIDTH = 2.0**-14
"""Least side and shrink: the smallest float16 of full precision, so that neither reaches 0."""
_AT_ONCE = 1 << 20
"""Weights worked on at a time: copies in float64 or scaled are of so many, not of a whole matrix."""
_SEARCHED = 4096
"""faiss searches so many rows in one matrix product; runs cut at its multiples give the same bits as one long run."""
_STEP_TRIALS = np.geomspace(1.0, 0.15, 24)
"""Candidate steps, as fractions of the one that reaches the largest coefficient."""


class HyperCodec:
    """Polynomial, Fourier, ergodic and manifold trajectories; `HyperConfig.trajectory_type` says which."""

    name = "hyper"

    def encode(
        self,
        weights: Mapping[str, Tensor | Matrix],
        config: HyperConfig,
        *,
        importance: Mapping[str, Importance] | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 matrices [O, I]; see `Codec.encode`. `importance` is not used.

        Raises:
            CodecError: NaN or infinite weights; no matrix at all; weights beyond what a float16 scale reaches.
        """
        if not weights:
            raise CodecError("there is no matrix to encode", where="hyper", fix="check which tensors are selected")
        taken = matrices(weights)
        for name, matrix in taken.items():
            low, high = extremes(name, matrix)
            if size_of(matrix) > MAX_SIZE:
                raise CodecError(f"the matrix has more than {MAX_SIZE:,} weights", where=name, fix="protect it")
            if max(-low, high) > 2.0**MAX_EXPONENT:
                raise CodecError("the matrix holds weights above 2^60", where=name, fix="rescale the model")
        if config.trajectory_type is Trajectory.ergodic:
            return self._encode_ergodic(taken, config, seed, on_progress)
        if config.trajectory_type is Trajectory.manifold:
            return self._encode_manifold(taken, config, on_progress)
        return self._encode_series(taken, config, on_progress)

    def _encode_ergodic(
        self,
        taken: dict[str, Matrix],
        config: HyperConfig,
        seed: int,
        on_progress: Progress | None,
    ) -> EncodedGroup:
        dims = config.dims
        published = config.side > 0
        unit = {name: 1.0 if published else _rms(matrix) for name, matrix in taken.items()}
        count = sum(-(-size_of(matrix) // dims) for matrix in taken.values())

        def scaled(name: str) -> Iterator[Tensor]:
            return (x_NK / (unit[name] or 1.0) for x_NK in _runs(taken[name], dims))

        def every() -> Iterator[Tensor]:
            return (x_NK for name in taken for x_NK in scaled(name))

        total = sum((x_NK.double().sum(0) for x_NK in every()), torch.zeros(dims, dtype=torch.float64))
        centroid, farthest = _half((total / max(count, 1)).numpy()), 0.0
        if config.classes:
            centre = torch.from_numpy(centroid)
            farthest = max((float((x_NK - centre).norm(dim=1).max()) for x_NK in every()), default=0.0)
        if published:
            side, shrink = config.side, ergodic.shrinks(config.side, farthest, config.classes, dims)
        else:
            side, shrink = ergodic.choose_side(
                _rows_at(ergodic.sampled(count, dims, seed), every(), dims),
                centroid,
                farthest,
                grid=config.grid,
                classes=config.classes,
                winding=config.winding,
            )
        side, shrink = float(_half(np.array([side]))[0]), np.maximum(_half(shrink), np.float32(_LEAST_WIDTH))
        points = ergodic.codebook(dims, config.grid, config.winding, centroid, side, shrink)
        table, index = torch.from_numpy(points), ergodic.search(points)
        bits = config.code_bits
        codes, scales = {}, {}
        for name, matrix in taken.items():
            found, energy, product = [np.zeros(0, dtype=narrowest(bits))], 0.0, 0.0
            for x_NK in scaled(name):
                nearest = ergodic.nearest(index, x_NK)
                found.append(nearest.numpy().astype(narrowest(bits)))
                chosen = table[nearest]
                energy += float((chosen * chosen).double().sum())
                product += float((x_NK * chosen).double().sum())
            codes[name] = np.concatenate(found)
            gain = 1.0 if published or energy == 0 else product / energy
            scales[name] = unit[name] * max(gain, 0.0)
            if on_progress is not None:
                on_progress(size_of(matrix))
        exponent = 0 if published else _exponent(scales.values())
        settings = config.stored(_shapes(taken), exponent=exponent)
        shared = {"centroid": _half_stream(centroid), "side": _half_stream(np.array([side]))}
        if config.classes:
            shared["shrink"] = _half_stream(shrink)
        return _group(self.name, settings, _shapes(taken), "codes", codes, bits, scales, shared)

    def _encode_manifold(
        self,
        taken: dict[str, Matrix],
        config: HyperConfig,
        on_progress: Progress | None,
    ) -> EncodedGroup:
        top = (1 << (config.coefficient_bits - 1)) - 1
        network = manifold_search.Network(config)
        inputs, amplitudes, energies = {}, {}, {}
        with torch.no_grad():
            for name, matrix in taken.items():
                x_BN = _blocks(_whole(matrix), config.block_size)
                inputs[name] = manifold_search.search(x_BN / (_rms(matrix) or 1.0), config)
                out_BN = network(inputs[name])
                energies[name] = out_BN.square().sum(1).double().numpy()
                amplitudes[name] = (x_BN * out_BN).sum(1).double().numpy() / np.maximum(energies[name], 1e-30)
                if on_progress is not None:
                    on_progress(size_of(matrix))
        largest = {name: float(np.abs(a).max(initial=0.0)) / top for name, a in amplitudes.items()}
        settings = config.stored(_shapes(taken), exponent=_exponent(largest.values()))
        codes, scales = {}, {}
        for name, a in amplitudes.items():
            q, scales[name] = _quantise(a, largest[name], settings["exponent"], top, energies[name])
            codes[name] = np.concatenate([inputs[name].numpy(), q[:, None]], axis=1).astype(np.int64).reshape(-1) + top
        return _group(self.name, settings, _shapes(taken), "coefficients", codes, config.coefficient_bits, scales, {})

    def _encode_series(
        self,
        taken: dict[str, Matrix],
        config: HyperConfig,
        on_progress: Progress | None,
    ) -> EncodedGroup:
        top = (1 << (config.coefficient_bits - 1)) - 1
        try:
            places = stacks(config, _shapes(taken))
        except ArtifactError as error:
            raise CodecError(error.what, where=error.where, fix="set hyper.axis=block") from error
        real = {}
        for name, matrix in taken.items():
            if name in places:
                names, place = places[name]
                if place == 0:
                    real |= _planes({member: taken[member] for member in names}, config)
                if on_progress is not None:
                    on_progress(size_of(matrix))
                continue
            length = config.block_size or size_of(matrix)
            basis_DN = _basis(config.trajectory_type, config.degree, length).astype(np.float64)
            x_BN = _blocks(_whole(matrix), length).double().numpy()
            # The rows are orthonormal but for their rounding to the grid: one small symmetric system puts that right.
            real[name] = np.linalg.solve(basis_DN @ basis_DN.T, basis_DN @ x_BN.T).T if x_BN.size else np.zeros((0, 1))
            if on_progress is not None:
                on_progress(size_of(matrix))
        largest = {name: float(np.abs(c).max(initial=0.0)) / top for name, c in real.items()}
        exponent = _exponent(largest.values())
        settings = config.stored(_shapes(taken), exponent=exponent)
        codes, scales = {}, {}
        for name, c in real.items():
            # A plane of 16 bits is to hold its largest coefficient too, which a float16 rounded down does not reach.
            fullest = _STEP_TRIALS if config.axis is Axis.block else np.append(_STEP_TRIALS, 1 + 2.0**-10)
            q, scales[name] = _quantise(c, largest[name], exponent, top, trials=fullest)
            codes[name] = q.astype(np.int64).reshape(-1) + top
        return _group(self.name, settings, _shapes(taken), "coefficients", codes, config.coefficient_bits, scales, {})

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`.

        Raises:
            ArtifactError: settings out of range; a stream is missing, of the wrong length or out of range.
        """
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns the continuous parameters: coefficients and step, or centroid, side, shrinks and scale.

        Raises:
            ArtifactError: as `decode`.
        """
        self.decode(group)
        config, exponent = config_of(group.settings)
        if config.trajectory_type is Trajectory.ergodic:
            return _TrainableWinding(group, config, exponent)
        if config.trajectory_type is Trajectory.manifold:
            return _TrainableManifold(group, config, exponent)
        if config.axis is Axis.depth:
            return _TrainableDepth(group, config, exponent)
        return _TrainableSeries(group, config, exponent)


class _TrainableWinding(Trainable):
    """Codes fixed; centroid [K], and gains near 1 on side [1], shrinks [M] and each tensor's scale [1]."""

    relative_step = 0.3

    def __init__(self, group: EncodedGroup, config: HyperConfig, exponent: int) -> None:
        super().__init__()
        self._group, self._exponent = group, exponent
        centroid, side, shrink = geometry(group, config)
        self.centroid = nn.Parameter(torch.from_numpy(centroid.copy()))
        self.side_gain = nn.Parameter(torch.ones(1))
        self.shrink_gain = nn.Parameter(torch.ones(len(shrink))) if len(shrink) else None
        self.register_buffer("_side", torch.tensor([float(side)]))
        self.register_buffer("_shrink", torch.from_numpy(shrink.copy()))
        direction = ergodic.steps(config.dims, config.grid, config.winding)
        self.register_buffer("_unit_QK", torch.from_numpy(ergodic.offsets(np.arange(config.grid + 1), direction)))
        self.scale_gain = nn.ParameterList()
        for n, (name, tensor) in enumerate(group.tensors.items()):
            theta = tensor.streams["codes"].values.astype(np.int64)
            self.register_buffer(f"_index_{n}", torch.from_numpy(theta % (config.grid + 1)))
            self.register_buffer(f"_class_{n}", torch.from_numpy(theta // (config.grid + 1)))
            self.register_buffer(f"_scale_{n}", torch.tensor([float(scale_of(tensor, name))]))
            self.scale_gain.append(nn.Parameter(torch.ones(1)))

    def _stored(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        shrink = self._shrink
        if self.shrink_gain is not None:
            shrink = _half_through(shrink * self.shrink_gain, least=_LEAST_WIDTH)
        side = _half_through(self._side * self.side_gain, least=_LEAST_WIDTH)
        scales = [_half_through(getattr(self, f"_scale_{n}") * gain) for n, gain in enumerate(self.scale_gain)]
        return _half_through(self.centroid), side, shrink, scales

    def weights(self) -> dict[str, Tensor]:
        centroid, side, shrink, scales = self._stored()
        widths = side / torch.cat([torch.ones_like(side), shrink])
        result = {}
        for n, (name, tensor) in enumerate(self._group.tensors.items()):
            offsets = self._unit_QK[getattr(self, f"_index_{n}")] * widths[getattr(self, f"_class_{n}")][:, None]
            values = (scales[n] * 2.0**self._exponent) * (centroid + offsets)
            result[name] = values.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
        return result

    def export(self) -> EncodedGroup:
        centroid, side, shrink, scales = self._stored()
        shared = {"centroid": _half_stream(centroid), "side": _half_stream(side)}
        if len(shrink):
            shared["shrink"] = _half_stream(shrink)
        tensors = {
            name: EncodedTensor(
                shape=tensor.shape, streams={"codes": tensor.streams["codes"], "scale": _half_stream(scale)}
            )
            for (name, tensor), scale in zip(self._group.tensors.items(), scales, strict=True)
        }
        return EncodedGroup(
            codec=self._group.codec, settings=dict(self._group.settings), tensors=tensors, shared=shared
        )


class _TrainableManifold(Trainable):
    """Inputs and amplitude of every block in units of their codes, [B, K + 1]; a gain near 1 on each tensor's scale."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup, config: HyperConfig, exponent: int) -> None:
        super().__init__()
        self._group, self._exponent = group, exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self._network = manifold_search.Network(config)
        self.coefficients, self.scale_gain = nn.ParameterList(), nn.ParameterList()
        for n, (name, tensor) in enumerate(group.tensors.items()):
            stored = tensor.streams["coefficients"].values.astype(np.int64) - self._top
            self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float().reshape(-1, config.inputs + 1)))
            self.scale_gain.append(nn.Parameter(torch.ones(1)))
            self.register_buffer(f"_scale_{n}", torch.tensor([float(scale_of(tensor, name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        scale = _half_through(getattr(self, f"_scale_{n}") * self.scale_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), scale

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for n, (name, tensor) in enumerate(self._group.tensors.items()):
            q_BK, scale = self._stored(n)
            values = self._network(q_BK[:, :-1]) * q_BK[:, -1:] * (scale * 2.0**self._exponent)
            result[name] = values.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
        return result

    def export(self) -> EncodedGroup:
        return _with_coefficients(self._group, [self._stored(n) for n in range(len(self.coefficients))], self._top)


class _TrainableSeries(Trainable):
    """Coefficients in units of the step, [B, D], rounded straight-through; a gain near 1 on each tensor's step."""

    def __init__(self, group: EncodedGroup, config: HyperConfig, exponent: int) -> None:
        super().__init__()
        self._group, self._exponent = group, exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self.coefficients, self.step_gain = nn.ParameterList(), nn.ParameterList()
        self._basis_of: list[str] = []
        for n, (name, tensor) in enumerate(group.tensors.items()):
            length = config.block_size or max(math.prod(tensor.shape), 1)
            basis_name = f"_basis_{length}"
            if not hasattr(self, basis_name):
                basis = _basis(config.trajectory_type, config.degree, length)
                self.register_buffer(basis_name, torch.from_numpy(basis))
            self._basis_of.append(basis_name)
            stored = tensor.streams["coefficients"].values.astype(np.int64) - self._top
            shape = (-1, len(getattr(self, basis_name))) if stored.size else (0, len(getattr(self, basis_name)))
            self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float().reshape(shape)))
            self.step_gain.append(nn.Parameter(torch.ones(1)))
            self.register_buffer(f"_step_{n}", torch.tensor([float(scale_of(tensor, name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        step = _half_through(getattr(self, f"_step_{n}") * self.step_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), step

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for n, (name, tensor) in enumerate(self._group.tensors.items()):
            q_BD, step = self._stored(n)
            values = (q_BD @ getattr(self, self._basis_of[n])) * (step * 2.0**self._exponent)
            result[name] = values.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
        return result

    def export(self) -> EncodedGroup:
        return _with_coefficients(self._group, [self._stored(n) for n in range(len(self.coefficients))], self._top)


class _TrainableDepth(Trainable):
    """Coefficients of every plane in units of its step, [O I], and a gain near 1 on the step; `_TrainableSeries` for
    the matrices in blocks."""

    relative_step = 0.003

    def __init__(self, group: EncodedGroup, config: HyperConfig, exponent: int) -> None:
        super().__init__()
        self._group, self._exponent = group, exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self._places = stacks(config, group.shapes)
        alone = {name: tensor for name, tensor in group.tensors.items() if name not in self._places}
        self.alone = _TrainableSeries(replace(group, tensors=alone), config, exponent)
        self.coefficients, self.step_gain = nn.ParameterList(), nn.ParameterList()
        self._plane_of: dict[str, int] = {}
        for name, (names, place) in self._places.items():
            basis_TL = over_depth(config.trajectory_type, config.degree, len(names))
            if not hasattr(self, f"_basis_{len(names)}"):
                self.register_buffer(f"_basis_{len(names)}", torch.from_numpy(basis_TL.copy()))
            if place < len(basis_TL):
                n = self._plane_of[name] = len(self._plane_of)
                stored = group.tensors[name].streams["coefficients"].values.astype(np.int64) - self._top
                self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float()))
                self.step_gain.append(nn.Parameter(torch.ones(1)))
                self.register_buffer(f"_step_{n}", torch.tensor([float(scale_of(group.tensors[name], name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        step = _half_through(getattr(self, f"_step_{n}") * self.step_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), step

    def weights(self) -> dict[str, Tensor]:
        result = self.alone.weights()
        for name, (names, place) in self._places.items():
            if place == 0:
                basis_TL = getattr(self, f"_basis_{len(names)}")
                planes = [self._stored(self._plane_of[member]) for member in names[: len(basis_TL)]]
                plane_TN = torch.stack([q * (step * 2.0**self._exponent) for q, step in planes])
                shape = self._group.tensors[name].shape
                result |= zip(names, (basis_TL.T @ plane_TN).reshape(len(names), *shape), strict=True)
        return {name: result[name] for name in self._group.tensors}

    def export(self) -> EncodedGroup:
        planes = {name: self._group.tensors[name] for name in self._plane_of}
        stored = [self._stored(n) for n in self._plane_of.values()]
        exported = _with_coefficients(replace(self._group, tensors=planes), stored, self._top).tensors
        exported = {**self._group.tensors, **exported, **self.alone.export().tensors}
        return replace(self._group, tensors=exported)


def _with_coefficients(group: EncodedGroup, stored: list[tuple[Tensor, Tensor]], top: int) -> EncodedGroup:
    """The group with other coefficients (whole numbers) and scales, one pair for each of its tensors."""
    tensors = {}
    for (name, tensor), (q, scale) in zip(group.tensors.items(), stored, strict=True):
        old = tensor.streams["coefficients"]
        values = (q.detach().cpu().numpy().reshape(-1) + top).astype(old.values.dtype)
        streams = {"coefficients": Stream(values=values, bits=old.bits), "scale": _half_stream(scale)}
        tensors[name] = EncodedTensor(shape=tensor.shape, streams=streams)
    return EncodedGroup(codec=group.codec, settings=dict(group.settings), tensors=tensors, shared={})


def _shapes(taken: dict[str, Matrix]) -> dict[str, tuple[int, ...]]:
    return {name: matrix.shape for name, matrix in taken.items()}


def _planes(members: dict[str, Matrix], config: HyperConfig) -> dict[str, np.ndarray]:
    """Coefficients of a stack's weights, float64 [O I] a plane, under the name of the member that carries it."""
    basis_TL = over_depth(config.trajectory_type, config.degree, len(members)).astype(np.float64)
    inverse_TL = np.linalg.solve(basis_TL @ basis_TL.T, basis_TL)
    planes = {}
    for name, inverse_L in zip(members, inverse_TL, strict=False):
        planes[name] = np.zeros(size_of(members[name]))
        for factor, matrix in zip(inverse_L, members.values(), strict=True):
            planes[name] += factor * _whole(matrix).numpy()
    return planes


def _basis(trajectory: Trajectory, degree: int, length: int) -> np.ndarray:
    return np.stack(list(rows(trajectory, degree, max(length, 1))))


def _whole(matrix: Matrix) -> Tensor:
    return matrix.part(0, size_of(matrix))


def _rms(matrix: Matrix) -> float:
    energy = sum(float(part.double().square().sum()) for part in in_parts(matrix, _AT_ONCE))
    return math.sqrt(energy / max(size_of(matrix), 1))


def _runs(matrix: Matrix, length: int) -> Iterator[Tensor]:
    """`_blocks`, about `_AT_ONCE` weights at a time: whole runs of `_SEARCHED` blocks, the last one longer."""
    size, begin = size_of(matrix), 0
    count = -(-size // length)
    step = _SEARCHED * max(1, _AT_ONCE // (_SEARCHED * length))
    while begin < count:
        end = begin + step if count - begin >= step + _SEARCHED else count
        yield _blocks(matrix.part(begin * length, min(end * length, size)), length)
        begin = end


def _rows_at(places: Tensor, runs: Iterator[Tensor], length: int) -> Tensor:
    """Rows of the runs, one after the other, by their numbers; in the order of `places`."""
    rows, begin = torch.empty(len(places), length), 0
    for run in runs:
        here = (places >= begin) & (places < begin + len(run))
        rows[here] = run[places[here].long() - begin]
        begin += len(run)
    return rows


def _blocks(w: Tensor, length: int) -> Tensor:
    """[numel] -> [B, length], the last block filled up with zeros."""
    count = math.ceil(w.numel() / length) if length else 0
    return nn.functional.pad(w, (0, count * length - w.numel())).reshape(count, max(length, 1))


def _quantise(
    values: np.ndarray,
    largest: float,
    exponent: int,
    top: int,
    weights: np.ndarray | None = None,
    trials: np.ndarray = _STEP_TRIALS,
) -> tuple[np.ndarray, float]:
    """Rounds to multiples of the step of least (weighted) squared error among the candidates; the multiples, the step.

    Args:
        largest: the step that reaches the largest value.
        exponent: the step is a float16 times 2^exponent.
    """
    best, multiples, step = math.inf, np.zeros_like(values), 0.0
    for trial in trials:
        tried = float(_half(np.array([largest * trial / 2.0**exponent]))[0]) * 2.0**exponent
        q = np.clip(np.rint(values / tried), -top, top) if tried > 0 else np.zeros_like(values)
        squares = (values - q * tried) ** 2
        error = float((squares if weights is None else squares * weights).sum())
        if error < best:
            best, multiples, step = error, q, tried
    return multiples, step


def _exponent(scales: Iterator[float]) -> int:
    """The power of two that brings the largest scale to between 128 and 256, far from both ends of float16."""
    largest = max(scales)
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, math.ceil(math.log2(largest)) - 8)) if largest > 0 else 0


def _half(x: np.ndarray) -> np.ndarray:
    """float32 values as float16 holds them."""
    return float16_values(float16_bits(np.clip(x, -_LARGEST_HALF, _LARGEST_HALF)))


def _half_stream(x: np.ndarray | Tensor) -> Stream:
    return Stream(values=float16_bits(x), bits=16)


def _half_through(x: Tensor, least: float = -_LARGEST_HALF) -> Tensor:
    return round_through(x, x.clamp(least, _LARGEST_HALF).half().float())


def _group(
    codec: str,
    settings: dict,
    shapes: dict[str, tuple[int, ...]],
    role: str,
    codes: dict[str, np.ndarray],
    bits: int,
    scales: dict[str, float],
    shared: dict[str, Stream],
) -> EncodedGroup:
    unit = 2.0 ** settings["exponent"]
    tensors = {
        name: EncodedTensor(
            shape=shapes[name],
            streams={
                role: Stream(values=codes[name].astype(narrowest(bits), copy=False), bits=bits),
                "scale": _half_stream(np.array([scales[name] / unit])),
            }
            if name in codes
            else {},
        )
        for name in shapes
    }
    return EncodedGroup(codec=codec, settings=settings, tensors=tensors, shared=shared)


CODEC = HyperCodec()
