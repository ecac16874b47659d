"""The ergodic winding: the search of the nearest points, and the training of the geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Progress,
    Trainable,
)
from phase8.codecs.hyper import ergodic
from phase8.codecs.hyper.coding import (
    AT_ONCE,
    LEAST_WIDTH,
    blocks,
    exponent_of,
    group_of,
    half,
    half_stream,
    half_through,
    rms,
    shapes_of,
)
from phase8.codecs.hyper.decode import (
    Settings,
    geometry,
    scale_of,
)
from phase8.codecs.hyper.settings import HyperConfig
from phase8.codecs.matrices import Matrix, size_of
from phase8.lossless.bitpack import narrowest

_SEARCHED = 4096
"""faiss searches so many rows in one matrix product; runs cut at its multiples give the same bits as one long run."""


def encode_winding(
    taken: dict[str, Matrix],
    config: HyperConfig,
    seed: int,
    on_progress: Progress | None,
) -> EncodedGroup:
    """Finds the geometry and the nearest point of every block; see `HyperCodec.encode`."""
    dims = config.dims
    published = config.side > 0
    unit = {name: 1.0 if published else rms(matrix) for name, matrix in taken.items()}
    count = sum(-(-size_of(matrix) // dims) for matrix in taken.values())

    def scaled(name: str) -> Iterator[Tensor]:
        return (x_NK / (unit[name] or 1.0) for x_NK in _runs(taken[name], dims))

    def every() -> Iterator[Tensor]:
        return (x_NK for name in taken for x_NK in scaled(name))

    total = sum((x_NK.double().sum(0) for x_NK in every()), torch.zeros(dims, dtype=torch.float64))
    centroid, farthest = half((total / max(count, 1)).numpy()), 0.0
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
    side, shrink = float(half(np.array([side]))[0]), np.maximum(half(shrink), np.float32(LEAST_WIDTH))
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
    exponent = 0 if published else exponent_of(scales.values())
    settings = config.stored(shapes_of(taken), exponent=exponent)
    shared = {"centroid": half_stream(centroid), "side": half_stream(np.array([side]))}
    if config.classes:
        shared["shrink"] = half_stream(shrink)
    return group_of("hyper", settings, shapes_of(taken), "codes", codes, bits, scales, shared)


class TrainableWinding(Trainable):
    """Codes fixed; centroid [K], and gains near 1 on side [1], shrinks [M] and each tensor's scale [1]."""

    relative_step = 0.3

    def __init__(self, group: EncodedGroup, config: Settings) -> None:
        super().__init__()
        self._group, self._exponent = group, config.exponent
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
            shrink = half_through(shrink * self.shrink_gain, least=LEAST_WIDTH)
        side = half_through(self._side * self.side_gain, least=LEAST_WIDTH)
        scales = [half_through(getattr(self, f"_scale_{n}") * gain) for n, gain in enumerate(self.scale_gain)]
        return half_through(self.centroid), side, shrink, scales

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
        shared = {"centroid": half_stream(centroid), "side": half_stream(side)}
        if len(shrink):
            shared["shrink"] = half_stream(shrink)
        tensors = {
            name: EncodedTensor(
                shape=tensor.shape, streams={"codes": tensor.streams["codes"], "scale": half_stream(scale)}
            )
            for (name, tensor), scale in zip(self._group.tensors.items(), scales, strict=True)
        }
        return EncodedGroup(
            codec=self._group.codec, settings=dict(self._group.settings), tensors=tensors, shared=shared
        )


def _runs(matrix: Matrix, length: int) -> Iterator[Tensor]:
    """`blocks`, about `AT_ONCE` weights at a time: whole runs of `_SEARCHED` blocks, the last one longer."""
    size, begin = size_of(matrix), 0
    count = -(-size // length)
    step = _SEARCHED * max(1, AT_ONCE // (_SEARCHED * length))
    while begin < count:
        end = begin + step if count - begin >= step + _SEARCHED else count
        yield blocks(matrix.part(begin * length, min(end * length, size)), length)
        begin = end


def _rows_at(places: Tensor, runs: Iterator[Tensor], length: int) -> Tensor:
    """Rows of the runs, one after the other, by their numbers; in the order of `places`."""
    rows, begin = torch.empty(len(places), length), 0
    for run in runs:
        here = (places >= begin) & (places < begin + len(run))
        rows[here] = run[places[here].long() - begin]
        begin += len(run)
    return rows
